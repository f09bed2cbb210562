"""What a shell command would run, read from its syntax without running any of it.

Only plain words may be matched by a rule that allows: whatever hides a program or an effect makes a command "not plain"
and is asked about. Rules that deny are tried on everything found here, through wrappers, substitutions and the bodies
of `bash -c`, and on the raw words where the syntax hides a program. This decides whether a question can be skipped; it
is no boundary.
"""

import fnmatch
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

from tree_sitter import Language, Node, Parser

MAX_BYTES = 10_000
MAX_COMMANDS = 50
MAX_WORDS = 500
MAX_DEPTH = 6

Word = str | None
"""A word as the program would get it; None if it is only known when the shell runs."""
Argv = tuple[Word, ...]

SHELLS = frozenset({"ash", "bash", "csh", "dash", "elvish", "fish", "ksh", "mksh", "nu", "pwsh", "sh", "tcsh", "zsh"})
# Programs and built-ins that run what stands in their arguments.
WRAPPERS = frozenset({
    ".", "alias", "at", "batch", "bind", "builtin", "busybox", "caffeinate", "chronic", "chroot", "chrt", "command",
    "compgen", "complete", "coproc", "cpulimit", "cron", "doas", "docker", "dtach", "ed", "enable", "entr", "env", "ex",
    "eval", "exec", "expect", "faketime", "fakeroot", "firejail", "flock", "gdb", "hash", "hexec", "ionice", "jexec",
    "kubectl", "ld.so", "linux32", "linux64", "logsave", "ltrace", "mapfile", "nice", "nohup", "nsenter", "numactl",
    "parallel", "pkexec", "podman", "prlimit", "proot", "proxychains", "readarray", "rlwrap", "run-parts", "runuser",
    "sched", "screen", "script", "setarch", "setpriv", "setsid", "source", "ssh", "start-stop-daemon", "stdbuf",
    "strace", "su", "sudo", "sudoedit", "systemd-run", "taskset", "tclsh", "time", "timeout", "tmux", "toybox", "trap",
    "unbuffer", "unshare", "uscan", "valgrind", "watch", "watchexec", "x11docker", "xargs", "xvfb-run",
})  # fmt: skip
# Built-ins whose effect reaches the commands after them, or whose arguments are code.
_CODE = frozenset(
    {".", "alias", "bind", "complete", "compgen", "enable", "eval", "hash", "mapfile", "readarray", "source"}
)
_GIT_RUNS = frozenset({"bisect", "difftool", "filter-branch", "mergetool", "rebase", "submodule"})
_GIT_VALUES = frozenset({"-C", "-c", "--config-env", "--exec-path", "--git-dir", "--namespace", "--work-tree"})
_GIT_SETS = ("-c", "--config-env", "--exec-path", "-C", "--git-dir", "--work-tree")
_KEYWORDS = frozenset({
    "!", "case", "do", "done", "elif", "else", "esac", "fi", "for", "function", "if", "in", "select", "then", "until",
    "while", "{", "}",
})  # fmt: skip
_FEEDING = frozenset({"xargs", "parallel"})
_FIND_RUNS = frozenset({"-exec", "-execdir", "-ok", "-okdir"})

_PLAIN_NODES = frozenset({
    "command", "command_name", "list", "number", "pipeline", "program", "raw_string", "string", "string_content",
    "word",
})  # fmt: skip
_PLAIN_TOKENS = frozenset({"&&", "||", ";", "|", "\n", '"'})
_SAID = {
    "ansi_c_string": "a string with escapes",
    "command_substitution": "a substitution",
    "comment": "a comment",
    "expansion": "an expansion",
    "heredoc_redirect": "a here-document",
    "herestring_redirect": "a here-string",
    "process_substitution": "a substitution",
    "simple_expansion": "an expansion",
    "variable_assignment": "an assignment",
    "variable_assignments": "an assignment",
}
_ESCAPES = {"a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_ANSI = re.compile(r"\\(x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{1,4}|U[0-9a-fA-F]{1,8}|[0-7]{1,3}|c.|.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Redirection:
    """A file that a command's output goes to; `appends` leaves what is in it."""

    target: Word
    appends: bool


@dataclass(frozen=True)
class Analysis:
    """What is known of one command line."""

    text: str
    commands: tuple[Argv, ...]
    """Every simple command in it, in order, with those that others would run."""
    writes: tuple[Redirection, ...]
    reads: tuple[Word, ...]
    """Files that redirections read."""
    unplain: str
    """Why a rule that allows cannot cover it; empty for plain words."""
    opaque: str
    """Why not even its programs are known; empty if they are."""

    @property
    def plain(self) -> bool:
        """Whether it is nothing but programs with plain words."""
        return not self.unplain and not self.opaque


@lru_cache(maxsize=256)
def analyse(command: str) -> Analysis:
    """Take a command line apart. Never raises: what cannot be read is opaque."""
    reading = _Reading()
    reading.read(command, depth=0)
    return Analysis(
        text=command,
        commands=tuple(reading.commands),
        writes=tuple(reading.writes),
        reads=tuple(reading.reads),
        unplain=reading.unplain,
        opaque=reading.opaque,
    )


def program(argv: Argv) -> str:
    """The program's name without its directory, in lower case: some file systems know no other."""
    first = argv[0] if argv else None
    return "" if first is None else first.rstrip("/").rpartition("/")[2].casefold()


def without_options(argv: Argv) -> Argv:
    """The program and its operands; of git the values of its general options are left out too."""
    found: list[Word] = list(argv[:1])
    skip = False
    for word in argv[1:]:
        if skip:
            skip = False
        elif word is not None and word.startswith("-") and word != "-":
            skip = program(argv) == "git" and word in _GIT_VALUES
        else:
            found.append(word)
    return tuple(found)


def raw_words(command: str) -> tuple[tuple[str, ...], ...]:
    """The words of a text that may hide a program, read in three ways: quotes joined, quotes apart, escapes undone."""
    text = command.replace("\\\n", "")
    undone = _ANSI.sub(_unescaped, text)
    joined = (re.sub(r"[\"'\\]|\$(?=['\"])", "", each) for each in (text, undone))
    return tuple(_split(each) for each in dict.fromkeys((*joined, text, undone)))


def _split(text: str) -> tuple[str, ...]:
    return tuple(re.split(r"[\s;|&(){}<>,=$`\"'\\\[\]!:#@]+", unicodedata.normalize("NFKC", text)))


@cache
def _parser() -> Parser:
    import tree_sitter_bash

    return Parser(Language(tree_sitter_bash.language()))


def hidden_in(text: str) -> str:
    """What of a text cannot be seen as it is: control, format and odd space characters. Empty if there is none."""
    for char in text:
        if char in "\n\t" or " " <= char <= "~":
            continue
        if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"}:
            return "a character that cannot be seen"
    return ""


@dataclass
class _Reading:
    """What is found while a command line and the ones inside it are read."""

    commands: list[Argv] = field(default_factory=list)
    writes: list[Redirection] = field(default_factory=list)
    reads: list[Word] = field(default_factory=list)
    unplain: str = ""
    opaque: str = ""

    def read(self, command: str, *, depth: int) -> None:
        """Read one text; `depth` counts the shells around it."""
        if depth > MAX_DEPTH:
            return self._hide("commands inside commands")
        if len(command) > MAX_BYTES:
            self._hide("it is too long to be read")
        self._hide(hidden_in(command))
        if "\\\n" in command:
            # Bash joins the two lines, and with them two words; the parser would see both of them.
            why = "a line that goes on in the next"
            (self._hide if re.search(r"\S\\\n\S", command) else self._mark)(why)
            command = command.replace("\\\n", "")
        root = _parser().parse(command.encode("utf-8", errors="replace")[: 4 * MAX_BYTES]).root_node
        first = len(self.commands)
        self._walk(root, depth=depth)
        if any(program(argv) in SHELLS for argv in self.commands[first:]):
            self._read_fed(root, self.commands[first:], depth=depth)
        if "((" in command:
            # What is no arithmetic to bash is a command in two pairs of parentheses.
            self.read(command.replace("((", "( (").replace("))", ") )"), depth=depth + 1)
        if _joins_lines(root):
            # The parser takes a word on the next line that starts with a backslash for a part of this one.
            self._hide("it does not parse")
            for line in command.split("\n"):
                self.read(line, depth=depth + 1)
        return None

    def _read_fed(self, root: Node, commands: Sequence[Argv], *, depth: int) -> None:
        """Read what a shell may be given on its input: here-documents, and what is said in the same text."""
        pending = [root]
        while pending:
            node = pending.pop()
            if node.type == "heredoc_body":
                self.read(_text(node), depth=depth + 1)
            elif node.type == "herestring_redirect":
                for word in map(literal, node.children):
                    self.read(word or "", depth=depth + 1)
            pending += node.children
        for argv in commands:
            if program(argv) in {"echo", "printf"}:
                self.read(" ".join(word for word in argv[1:] if word is not None), depth=depth + 1)

    def _hide(self, why: str) -> None:
        self.opaque = self.opaque or why

    def _mark(self, why: str) -> None:
        self.unplain = self.unplain or why

    def _walk(self, root: Node, *, depth: int) -> None:
        pending = [root]
        while pending:
            node = pending.pop()
            if node.type == "ERROR" or node.is_missing:
                self._hide("it does not parse")
            if node.type == "file_redirect":
                self._redirect(node)
            elif node.type == "redirected_statement":
                pass  # what matters is where it goes
            elif node.type in {"declaration_command", "unset_command"}:
                self._mark("a declaration")
                self._add((node.children[0].type, None), depth=depth, stdin=False)
            elif node.is_named and node.type not in _PLAIN_NODES:
                self._mark(_SAID.get(node.type, node.type.replace("_", " ")))
            elif not node.is_named and node.type not in _PLAIN_TOKENS:
                self._mark(f"`{node.type}`")
            if node.type == "command":
                self._command(node, depth=depth)
            pending += self._below(node)[::-1]

    def _below(self, node: Node) -> list[Node]:
        """The children to look at; of a redirection only what may hold commands."""
        if node.type == "file_redirect":
            return [child for child in node.children if child.type not in {"word", "number", "file_descriptor"}][1:]
        return node.children

    def _redirect(self, node: Node) -> None:
        sign = next((child.type for child in node.children if not child.is_named), "")
        named = [child for child in node.children if child.is_named and child.type != "file_descriptor"]
        target = literal(named[0]) if named else None
        if sign in {">&", "<&"} and target is not None and re.fullmatch(r"\d+-?|-", target):
            return None
        if target == "/dev/null":
            return None
        if sign == "<":
            self.reads.append(target)
            return self._mark("a redirection")
        self._mark("a redirection that writes")
        self.writes.append(Redirection(target, appends=">>" in sign))
        return None

    def _command(self, node: Node, *, depth: int) -> None:
        words: list[Word] = []
        end = -1
        for child in node.children:
            if not child.is_named or child.type in {"variable_assignment", "file_redirect", "herestring_redirect"}:
                continue
            word = self._word(child)
            if child.start_byte == end:
                # What stands together is one word, also where the parser takes it apart: `'r'\m`.
                self._mark("quoting that changes words")
                before = words.pop()
                word = None if before is None or word is None else before + word
            words.append(word)
            end = child.end_byte
        self._add(tuple(words), depth=depth, stdin=_fed(node))

    def _word(self, child: Node) -> Word:
        node = child.children[0] if child.type == "command_name" and child.children else child
        word = literal(node)
        if word is None or _has_marks(node):
            self._mark("an expansion or a pattern" if word is None else "quoting that changes words")
        if word is not None and child.type == "command_name" and "=" in word:
            self._mark("an assignment")
        return word

    def _add(self, argv: Argv, *, depth: int, stdin: bool) -> None:
        if len(self.commands) >= MAX_COMMANDS:
            return self._hide(f"more than {MAX_COMMANDS} commands")
        if len(argv) > MAX_WORDS:
            self._hide(f"more than {MAX_WORDS} words")
        self.commands.append(argv)
        name = program(argv)
        if name in _KEYWORDS:
            # A keyword is a program to the parser where it did not expect one: `! while ...`.
            self._hide("it does not parse")
            return self._add(argv[1:], depth=depth, stdin=stdin) if len(argv) > 1 else None
        if not name or name == "{}":
            self._hide("the program is only known when it runs")
            return self._wrapped(argv[1:], depth=depth, code=False)
        if name in SHELLS:
            self._shell(argv, depth=depth, stdin=stdin)
        elif name in WRAPPERS or name.startswith("ld-linux"):
            self._mark(f"`{name}` runs other commands")
            self._wrapped(argv[1:], depth=depth, code=name in _CODE)
            if name in _FEEDING and any(program(argv[place:]) in SHELLS | WRAPPERS for place in range(1, len(argv))):
                self._hide("a program that gets its command from elsewhere")
        elif name == "find" and any(word in _FIND_RUNS for word in argv):
            self._mark("`find` runs other commands")
            for place, word in enumerate(argv):
                if word in _FIND_RUNS:
                    self._wrapped(argv[place + 1 :], depth=depth, code=False)
        elif name == "git":
            self._git(argv, depth=depth)
        return None

    def _shell(self, argv: Argv, *, depth: int, stdin: bool) -> None:
        """A shell runs the text after -c, or a script file, or what it reads."""
        given = argv[1:]
        flag = next(
            (i for i, w in enumerate(given) if w is not None and re.fullmatch(r"-[a-zA-Z]*c[a-zA-Z]*", w)), None
        )
        if flag is None:
            if stdin or not any(word is not None and not word.startswith("-") for word in given) or None in given:
                self._hide("a shell whose commands are not known")
            return
        self._mark("a shell runs other commands")
        for word in given[flag + 1 :]:
            if word is None:
                self._hide("a shell whose commands are not known")
            elif not word.startswith(("-", "+")):
                self.read(word, depth=depth + 1)
                break
        else:
            self._hide("a shell whose commands are not known")

    def _wrapped(self, words: Argv, *, depth: int, code: bool) -> None:
        """What a wrapper may run: each word may start it, and a word with spaces may be all of it."""
        if code:
            self._hide("code in arguments")
            self.read(" ".join(word for word in words if word is not None), depth=depth + 1)
        for place, word in enumerate(words):
            if word is None:
                if not any(before is not None and re.match(r"[^-\d=][^=]*$", before) for before in words[:place]):
                    self._hide("the program is only known when it runs")
            elif re.search(r"[\s;|&<>$`(]", word):
                self.read(word, depth=depth + 1)
            elif not word.startswith("-"):
                self._inner(words[place:], depth=depth)

    def _inner(self, argv: Argv, *, depth: int) -> None:
        if program(argv) in SHELLS:
            self._shell(argv, depth=depth, stdin=False)
        if len(self.commands) >= MAX_COMMANDS:
            return self._hide(f"more than {MAX_COMMANDS} commands")
        self.commands.append(argv)
        return None

    def _git(self, argv: Argv, *, depth: int) -> None:
        operands = without_options(argv)
        general = argv[1 : argv.index(operands[1])] if len(operands) > 1 else argv[1:]
        if any(word is None or word.startswith(_GIT_SETS) for word in general):
            self._mark("`git` with settings of its own")
        if len(operands) > 1 and (operands[1] is None or operands[1] in _GIT_RUNS):
            self._mark("`git` runs other commands")
            self._wrapped(operands[2:], depth=depth, code=False)


def _joins_lines(root: Node) -> bool:
    """Whether a word goes over the end of a line without quotes around it."""
    pending = [root]
    while pending:
        node = pending.pop()
        if node.type == "word" and "\n" in _text(node):
            return True
        if node.type not in {"heredoc_body", "string", "raw_string"}:
            pending += node.children
    return False


def _fed(node: Node) -> bool:
    """Whether a command reads what others write: a later part of a pipe, or a redirected one."""
    parent = node.parent
    while parent is not None and parent.type in {"redirected_statement", "pipeline", "negated_command"}:
        if parent.type == "redirected_statement":
            return True
        if parent.type == "pipeline" and parent.children[0].id != node.id:
            return True
        parent = parent.parent
    return any(child.type == "herestring_redirect" for child in node.children)


def literal(node: Node) -> Word:
    """The word a node stands for, if the shell would make one and the same word of it at all times."""
    text = _text(node)
    match node.type:
        case "number":
            return text if node.child_count == 0 else None
        case "raw_string":
            return text[1:-1]
        case "ansi_c_string":
            return _ANSI.sub(_unescaped, text[2:-1])
        case "string":
            if any(child.is_named and child.type != "string_content" for child in node.children) or "$" in text:
                return None
            return re.sub(r"\\([$`\"\\])", r"\1", text[1:-1])
        case "word":
            return _bare(text)
        case "concatenation":
            if text == "{}":
                return text
            parts = [literal(child) for child in node.children]
            return None if any(part is None for part in parts) else "".join(part for part in parts if part is not None)
        case _:
            return None


def _bare(text: str) -> Word:
    """An unquoted word, None if it is a pattern, a home directory or a list of words."""
    if re.search(r"(?<!\\)[*?\[{}$`]", text) or re.search(r"(^|[:=])~", text):
        return None
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _has_marks(node: Node) -> bool:
    """Whether a word is written in a way that a reader may take for another one."""
    if node.type == "concatenation":
        return any(child.type not in {"word", "number"} or "\\" in _text(child) for child in node.children)
    return node.type == "ansi_c_string" or (node.type in {"word", "string"} and "\\" in _text(node))


def _text(node: Node) -> str:
    return (node.text or b"").decode("utf-8", errors="replace")


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if code[0] in "xuU" and len(code) > 1:
        number = int(code[1:], 16)
        return chr(number) if number < 0x110000 else ""
    if code[0] in "01234567":
        return chr(int(code, 8) & 0xFF)
    if code[0] == "c" and len(code) == 2:
        return chr(ord(code[1].upper()) & 0x1F)
    return _ESCAPES.get(code, code)


def prefixes(argv: Sequence[Word], words: Sequence[str]) -> bool:
    """Whether a command starts with these words; a word of a rule may hold `*` for any characters."""
    return len(argv) >= len(words) and all(
        given is not None and fits(given, wanted) for given, wanted in zip(argv, words, strict=False)
    )


def fits(given: str, wanted: str) -> bool:
    """Whether a word is what a rule names."""
    return given == wanted or ("*" in wanted and _glob(wanted).fullmatch(given) is not None)


@lru_cache(maxsize=512)
def _glob(wanted: str) -> re.Pattern[str]:
    # Its stars take a bounded time, and only they have a meaning here.
    return re.compile(fnmatch.translate(re.sub(r"[?\[]", r"[\g<0>]", wanted)))
