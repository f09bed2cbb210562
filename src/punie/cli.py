"""The command line: it parses, hands over to `punie.ui`, and turns errors into exit codes.

argparse instead of typer, because `punie --help` is measured in Python start-ups: typer alone costs five of them,
and its groups cannot hold a free prompt beside commands. Everything else is imported inside the command it serves.
"""

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, Never

from punie.errors import PunieError, UsageError
from punie.ui import _examples
from punie.ui.options import EXPORT_FORMATS, MODES, OUTPUT_FORMATS, Options, directory

DESCRIPTION = """\
A coding agent that runs on your own machine.

Without -p, Punie chats in the terminal, starting with PROMPT if there is one.
With -p it answers once and exits; PROMPT may also come on standard input.
Nobody can be asked then: a tool that needs a permission ends the run, unless
--allowed-tools or a mode allows it."""


_DESCRIBE = "--\0describe"
"""A flag that nobody can give: a command that gets it hands out its parser, with all that was added to it."""


class _Described(Exception):  # noqa: N818 - nothing went wrong
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are Punie's own."""

    def error(self, message: str) -> Never:
        if _DESCRIBE in message:
            raise _Described(self)
        raise UsageError(message[:1].upper() + message[1:] + ".", f"`{self.prog} --help` lists what there is.")


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-p", "--print", action="store_true", dest="print_only", help="answer once on standard output, then exit")
    add("-m", "--model", metavar="SPEC", help="local[:NAME], mlx:PATH, gguf:PATH, claude[:MODEL], openai:MODEL[@URL]")
    add("-C", "--cwd", metavar="DIR", help="work in DIR instead of the current directory")
    _add_policy_flags(parser)
    add("--output-format", choices=OUTPUT_FORMATS, default="text", metavar="FORMAT", help=", ".join(OUTPUT_FORMATS))
    add("-c", "--continue", action="store_true", dest="continue_last", help="go on with this directory's last session")
    add("-r", "--resume", nargs="?", const="", metavar="ID", help="go on with a session; without ID, list them")
    add(
        "--fork", "--fork-session", action="store_true", dest="fork", help="go on with a copy; the session itself stays"
    )
    add(
        "-v",
        "--verbose",
        action="store_true",
        help="on standard error: settings files, model, every request, call and retry",
    )


def _add_policy_flags(parser: argparse.ArgumentParser) -> None:
    """What the model may do, and what is kept."""
    add = parser.add_argument
    add("--permission-mode", choices=MODES, metavar="MODE", help=", ".join(MODES))
    add("--yolo", action="store_true", help="run every tool without asking (bypassPermissions)")
    add(
        "--allowed-tools",
        action="append",
        metavar="RULES",
        help="tools and rules that need not ask: edit_file,Bash(git log:*)",
    )
    add(
        "--disallowed-tools",
        action="append",
        metavar="RULES",
        help="tools the model does not get, and rules of what is denied",
    )
    add("--max-turns", type=int, metavar="N", help="requests to the model for one prompt, at most")
    add("--no-session", action="store_true", help="store nothing of this conversation, not even what was typed")


def _root_parser() -> _Parser:
    listing = "\n".join(f"  {name:<10} {command.summary}" for name, command in COMMANDS.items())
    parser = _Parser(
        prog="punie",
        usage="punie [OPTIONS] [PROMPT]\n       punie COMMAND ...",
        description=DESCRIPTION,
        epilog=f"commands:\n{listing}\n\n{_examples.CHAT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="what to ask or to do")
    _add_run_flags(parser)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    return parser


def _command_parser(name: str, usage: str) -> _Parser:
    parser = _Parser(
        prog=f"punie {name}",
        usage=f"punie {name} {usage}".rstrip(),
        description=COMMANDS[name].summary + ".",
        epilog=_examples.COMMANDS.get(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-C", "--cwd", metavar="DIR", help="work in DIR instead of the current directory")
    parser.add_argument("-m", "--model", metavar="SPEC", help="the model to use instead of the configured one")
    parser.add_argument("-v", "--verbose", action="store_true", help="more detail, where there is any")
    return parser


def _models(arguments: Sequence[str]) -> int:
    parser = _command_parser("models", "[list | pull NAME | info NAME | test [NAME]]")
    parser.add_argument("action", nargs="?", default="list", choices=("list", "pull", "info", "test"))
    parser.add_argument("name", nargs="?", help="a model spec; the configured model if absent")
    given = parser.parse_args(arguments)
    from punie.ui import models

    return models.run(given.action, given.name or given.model, options=_command_options(given))


def _config(arguments: Sequence[str]) -> int:
    parser = _command_parser("config", "[show | path | edit | set KEY VALUE]")
    parser.add_argument("action", nargs="?", default="show", choices=("show", "path", "edit", "set"))
    parser.add_argument("key", nargs="?", help="a setting, as `punie config show` names it")
    parser.add_argument("value", nargs="?", help="its value; lists take commas")
    given = parser.parse_args(arguments)
    if given.action != "set" and given.key is not None:
        parser.error(f"'{given.action}' takes no arguments")
    if given.action == "set" and given.value is None:
        parser.error("'set' takes a key and a value")
    from punie.ui import configure

    return configure.run(given.action, options=_command_options(given), key=given.key, value=given.value)


def _sessions(arguments: Sequence[str]) -> int:
    usage = (
        "[list [--all] | show ID | import FILE | rm ID... | prune\n"
        "                       | export ID [-o FILE] [--format FORMAT]]"
    )
    parser = _command_parser("sessions", usage)
    actions = ("list", "show", "export", "import", "rm", "delete", "prune")
    parser.add_argument("action", nargs="?", default="list", choices=actions)
    parser.add_argument("names", nargs="*", metavar="ID", help="the beginning of a session's id, or a file to import")
    parser.add_argument("--all", action="store_true", help="list the sessions of every directory")
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument(
        "--format",
        choices=EXPORT_FORMATS,
        metavar="FORMAT",
        help=f"of an export: {', '.join(EXPORT_FORMATS)}; told from the end of FILE's name if absent, else jsonl",
    )
    formats.add_argument(
        "--markdown", action="store_const", const="markdown", dest="format", help="the same as --format markdown"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="export to a new file instead of standard output")
    given = parser.parse_intermixed_args(arguments)
    if given.action in ("list", "prune") and given.names:
        parser.error(f"'{given.action}' takes no arguments")
    from punie.ui import sessions

    options = _command_options(given)
    output: str | None = given.output
    return sessions.run(
        given.action, given.names, options=options, everywhere=given.all, form=given.format, output=output
    )


def _mcp(arguments: Sequence[str]) -> int:
    # What follows a lone -- is the server's own command line.
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    usage = (
        "[list [--json] | approve NAME | test NAME\n"
        "                  | add NAME [FLAGS] (URL | -- COMMAND [ARG...])\n"
        "                  | remove NAME [--project]]"
    )
    parser = _command_parser("mcp", usage)
    parser.add_argument("action", nargs="?", default="list", choices=("list", "add", "remove", "approve", "test"))
    parser.add_argument("name", nargs="?", default="", metavar="NAME")
    parser.add_argument("target", nargs="*", metavar="URL", help="where the server is, or its command after --")
    parser.add_argument("--transport", choices=("stdio", "http"), help="told from the URL or the command if absent")
    parser.add_argument("-e", "--env", action="append", metavar="NAME=VALUE", help="a variable the program gets")
    parser.add_argument("-H", "--header", action="append", metavar="NAME: VALUE", help="a header of every request")
    parser.add_argument(
        "--models", action="append", metavar="PATTERN", help="models that see its tools, such as claude*"
    )
    parser.add_argument("--project", action="store_true", help="in .mcp.json of the project, not in your own mcp.json")
    parser.add_argument("--json", action="store_true", help="list as JSON")
    given = parser.parse_intermixed_args(arguments[:end])
    target = (*given.target, *arguments[end + 1 :])
    if given.action == "list" and given.name:
        parser.error("'list' takes no name")
    if given.action != "list" and not given.name:
        parser.error(f"'{given.action}' takes the name of a server")
    if (given.action == "add") != bool(target):
        parser.error("'add' takes a URL, or -- and a command" if not target else f"'{given.action}' takes only a name")
    from punie.ui import mcp

    asked = mcp.Asked(
        name=given.name,
        target=target,
        transport=given.transport,
        env=tuple(given.env or ()),
        headers=tuple(given.header or ()),
        models=tuple(given.models or ()),
        project=given.project,
        as_json=given.json,
    )
    return mcp.run(given.action, asked, options=_command_options(given))


def _acp(arguments: Sequence[str]) -> int:
    parser = _command_parser("acp", "[OPTIONS]")
    _add_policy_flags(parser)
    parser.set_defaults(prompt=None, print_only=False, output_format="text", continue_last=False, resume=None)
    parser.set_defaults(fork=False)
    given = parser.parse_args(arguments)
    if given.cwd is not None:
        parser.error("the editor names the directory of each session, so there is no --cwd")
    from punie.ui import acp

    return acp.run(_options(given))


def _doctor(arguments: Sequence[str]) -> int:
    parser = _command_parser("doctor", "[--quick] [--json] [--bundle FILE [--session ID]]")
    add = parser.add_argument
    add("--quick", "--no-model", action="store_true", help="ask the model nothing")
    add("--json", action="store_true", help="print one JSON object")
    add("--timeout", type=float, metavar="SECONDS", help="for the model's answer, loading included; 180 if absent")
    add("--bundle", metavar="FILE", help="a new zip file for somebody who helps, without secrets; nothing is sent")
    add("--session", default="", metavar="ID", help="put this conversation into the bundle")
    given = parser.parse_args(arguments)
    if given.timeout is not None and given.timeout <= 0:
        parser.error("--timeout must be more than 0")
    if given.session and not given.bundle:
        parser.error("--session needs --bundle")
    from punie.ui import doctor

    asked = doctor.Asked(
        quick=given.quick,
        as_json=given.json,
        seconds=given.timeout or doctor.SECONDS,
        bundle=Path(given.bundle).expanduser() if given.bundle else None,
        session=given.session,
    )
    return doctor.run(_command_options(given), asked)


def _trust(arguments: Sequence[str]) -> int:
    parser = _command_parser("trust", "[--remove | --list] [DIR]")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--remove", action="store_const", const="remove", dest="action", help="trust it no longer")
    actions.add_argument("--list", action="store_const", const="list", dest="action", help="name what is trusted")
    parser.add_argument("directory", nargs="?", metavar="DIR", help="the project; the current directory if absent")
    given = parser.parse_args(arguments)
    from punie.ui import trust

    return trust.run(given.action or "add", directory(given.directory or given.cwd), env=os.environ)


def _init(arguments: Sequence[str]) -> int:
    parser = _command_parser("init", "[--project]")
    parser.add_argument("--project", action="store_true", help="the project's, in its .punie/config.toml")
    given = parser.parse_args(arguments)
    from punie.ui import init

    return init.run(_command_options(given), project=given.project)


def _completion(arguments: Sequence[str]) -> int:
    parser = _command_parser("completion", "bash | zsh | fish")
    parser.add_argument("shell", nargs="?", choices=("bash", "zsh", "fish"))
    parser.add_argument("--line", help=argparse.SUPPRESS)
    parser.add_argument("--breaks", default="", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.shell is None:
        parser.error("'completion' takes the name of a shell")
    from punie.ui import completion

    commands = completion.Commands(
        root=_root_parser(),
        summaries={name: command.summary for name, command in COMMANDS.items()},
        parser_of=_described,
        position=_command_position,
    )
    return completion.run(given.shell, line=given.line, breaks=given.breaks, commands=commands)


def _described(name: str) -> argparse.ArgumentParser | None:
    """The parser of a command that is not run; None of a command that is another package's."""
    try:
        if name != "train":
            COMMANDS[name].run([_DESCRIBE])
    except _Described as described:
        return described.parser
    except PunieError:  # it needs an argument, and says so first
        return None
    return None


def _train(arguments: Sequence[str]) -> int:
    """Hand everything over by name: this package never imports the training package."""
    from importlib import import_module

    try:
        training = import_module("punie_training.cli")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Training cannot be loaded: no module named '{error.name}'.",
            'Install it with `pip install "punie[training]"`.',
        ) from error
    return training.main(list(arguments)) or 0


class Command(NamedTuple):
    """A word that is a command when it is the first argument."""

    summary: str
    run: Callable[[Sequence[str]], int]


COMMANDS: Mapping[str, Command] = {
    "models": Command("List, fetch, describe and test the models", _models),
    "config": Command("Show and change the settings, each with its source", _config),
    "init": Command("Write a settings file that names every setting", _init),
    "sessions": Command("List, show, export, import and delete stored conversations", _sessions),
    "trust": Command("Trust a project: its .punie/config.toml is read from then on", _trust),
    "mcp": Command("List, add, remove, approve and test MCP servers", _mcp),
    "acp": Command("Serve the Agent Client Protocol to an editor, on stdin and stdout", _acp),
    "doctor": Command("Check all that Punie needs, ask the model, name every cure", _doctor),
    "completion": Command("Print what makes Tab complete in bash, zsh or fish", _completion),
    "train": Command("Train and evaluate the model (`punie train --help`)", _train),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. A bug keeps its traceback, without secrets."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _import_nothing_from_here()
    _run_nothing_from_here()
    _survive_odd_text()
    sys.excepthook = _show_bug
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except PunieError as error:
        return _complain(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return _reader_left()
    return code


def _import_nothing_from_here() -> None:
    """A repository's `rich.py` must not be taken for rich, whatever PYTHONPATH and the way Punie was started say.

    The directory Punie itself was installed from stays, also for those who work in it.
    """
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        here = ""
    own = str(Path(__file__).resolve().parent.parent)
    kept = (entry for entry in sys.path if Path(entry).is_absolute() and (entry.rstrip("/") != here or here == own))
    sys.path[:] = [entry for entry in kept if entry]


def _run_nothing_from_here() -> None:
    """A repository's `uname` must not be taken for the system's, which libraries ask for by its name alone."""
    entries = (entry for entry in os.environ.get("PATH", "").split(os.pathsep) if Path(entry).is_absolute())
    os.environ["PATH"] = os.pathsep.join(entries) or os.defpath


def _run(arguments: list[str]) -> int:
    position = _command_position(arguments)
    if position is not None:
        name = arguments.pop(position)
        return COMMANDS[name].run(arguments)
    parser = _root_parser()
    given = parser.parse_intermixed_args(arguments)
    if given.version:
        return _print_version()
    options = _options(given)
    if options.print_only:
        from punie.ui import plain

        return plain.run(options)
    if options.output_format != "text":
        raise UsageError("--output-format needs -p.", "`punie -p PROMPT --output-format json`")
    from punie.ui._keyboard import quiet_keys

    with quiet_keys():  # what is typed while the chat is being imported is for its prompt, and Return stays Return
        gc.disable()  # there is no garbage in what is imported, and looking for it takes a twentieth of the time
        from punie.ui import terminal

        gc.freeze()
        gc.enable()
        return terminal.run(options)


def _command_position(arguments: Sequence[str]) -> int | None:
    """Where the command stands: it is the first word that is no flag, and nothing asked for a printed answer before."""
    skip = False
    for position, argument in enumerate(arguments):
        if skip:
            skip = False
        elif argument in ("-p", "--print", "--"):
            return None
        elif not argument.startswith("-"):
            return position if argument in COMMANDS else None
        else:
            skip = argument in ("-m", "--model", "-C", "--cwd")
    return None


def _options(given: argparse.Namespace) -> Options:
    if given.yolo and given.permission_mode not in (None, "bypassPermissions"):
        raise UsageError(f"--yolo and --permission-mode {given.permission_mode} contradict each other.")
    if given.max_turns is not None and given.max_turns < 1:
        raise UsageError(f"--max-turns must be at least 1, not {given.max_turns}.")
    if given.no_session and (given.continue_last or given.resume is not None):
        raise UsageError("--no-session cannot go on with a stored session.")
    return Options(
        cwd=directory(given.cwd),
        prompt=" ".join(given.prompt) if given.prompt else None,
        print_only=given.print_only,
        model=given.model,
        permission_mode="bypassPermissions" if given.yolo else given.permission_mode,
        allowed_tools=_names(given.allowed_tools),
        disallowed_tools=_names(given.disallowed_tools),
        max_turns=given.max_turns,
        output_format=given.output_format,
        no_session=given.no_session,
        verbose=given.verbose,
        continue_last=given.continue_last,
        resume=given.resume,
        fork=given.fork,
    )


def _command_options(given: argparse.Namespace) -> Options:
    return Options(cwd=directory(given.cwd), model=given.model, verbose=given.verbose)


def _names(values: Sequence[str] | None) -> tuple[str, ...]:
    from punie.rules import split_rules

    return tuple(rule for value in values or () for rule in split_rules(value))


def _print_version() -> int:
    from punie import __version__

    sys.stdout.write(f"punie {__version__}\n")
    return 0


def _complain(error: PunieError) -> int:
    from punie.redaction import Redactor
    from punie.ui._clean import clean

    first, *rest = clean(Redactor(os.environ)(str(error))).splitlines() or [type(error).__name__]
    sys.stderr.write("\n".join([f"punie: {first}", *(f"  {line}" for line in rest)]) + "\n")
    return error.exit_code


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does; what it quotes may hold secrets and control sequences."""
    import traceback

    from punie.redaction import Redactor
    from punie.ui import _crashes
    from punie.ui._clean import visible

    _crashes.keep(error.with_traceback(trace), os.environ)
    told = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(visible(Redactor(os.environ)(told)))


def _survive_odd_text() -> None:
    """A file name or an answer that the terminal's encoding lacks is printed escaped instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _terminate(number: int, _frame: FrameType | None) -> None:
    """End the orderly way, so that the terminal is restored and children are stopped."""
    sys.exit(128 + number)


def _reader_left() -> int:
    """The reader of our output is gone (`punie -p ... | head`); stay quiet, also when Python flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
