"""`punie --help` and `punie COMMAND --help`: they fit on a screen, end with exit codes, and their examples are real."""

import re
import shlex
from typing import NamedTuple, Never

import pytest

from punie import cli
from punie.errors import UsageError
from punie_training import cli as training

COMMANDS = sorted(cli.COMMANDS)


class Parsed(Exception):  # noqa: N818 - it is no error
    """An example was parsed; nothing of it is to be done."""


class Example(NamedTuple):
    command: str
    line: str


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def page(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        cli._run([command, "--help"] if command else ["--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def examples(text: str) -> list[str]:
    """The command lines of a page, without what is said about them."""
    block = text.partition("\nexamples:\n")[2].partition("\n\n")[0]
    return [line.strip() for line in block.splitlines()]


def words_of(line: str) -> list[str]:
    """The words after `punie` as a shell gives them; what stands two spaces apart says what the line does."""
    shown = re.split(r" {2,}", line)[0].rpartition("| ")[2]
    shown = re.sub(r".*\$\((.*)\).*", r"\1", re.sub(r" [<>] \S+", "", shown))
    program, *words = shlex.split(shown)
    assert program == "punie"
    return words


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_a_page_fits_and_says_how_it_ends(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = page(command, capsys)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert text.startswith(f"usage: punie {command}".rstrip())
    codes = text.partition("\nexit codes:\n")[2].partition("\n\n")[0]
    assert re.search(r"\b0 \w+", codes)
    assert re.search(r"\b2 \w+", codes)
    assert 2 <= len(examples(text)) <= 5


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_example_is_one_that_the_real_parser_takes(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = examples(page(command, capsys))
    done = _parsing_only(monkeypatch)
    for line in lines:
        words = words_of(line)
        assert not command or words[0] == command
        with pytest.raises(Parsed):
            cli._run(words)
        assert done[-1] == (f"punie {command}" if command and command != "train" else done[-1])
    assert len(done) == len(lines)


def _parsing_only(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the parsers of commands parse and then stop; the names of those that did are in the list."""
    done: list[str] = []

    def stopping(parse):
        def parsed(parser, arguments=None, namespace=None) -> Never:
            parse(parser, arguments, namespace)
            done.append(parser.prog)
            raise Parsed

        return parsed

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(cli._Parser, name, stopping(getattr(cli._Parser, name)))
    parser = training._parser()
    monkeypatch.setattr(training, "_parser", lambda: parser)
    monkeypatch.setattr(parser, "parse_args", lambda words: stopping(type(parser).parse_args)(parser, words))
    return done


@pytest.mark.parametrize("line", ["punie doctor --quikc", "punie sessions --format xml", "punie --modle x"])
def test_a_wrong_example_would_be_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above rests on."""
    _parsing_only(monkeypatch)
    with pytest.raises(UsageError):
        cli._run(words_of(line))
