"""Secrets are taken out of text, ordinary text stays, and it makes no difference in what pieces it comes."""

import base64
import os
import random
import string
import sys
import sysconfig
from pathlib import Path
from time import thread_time
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.outputs import OUTPUTS

from punie import redaction
from punie.redaction import FAILED, MARKER, Redactor, looks_secret, tokens, without_private_keys

CHANCE = random.Random(7)


def made_up(length: int, letters: str = string.ascii_letters + string.digits) -> str:
    """A value that looks like one an issuer gave."""
    return "a7Q" + "".join(CHANCE.choice(letters) for _ in range(length - 3))


def pem(lines: int = 6) -> str:
    body = "\n".join(made_up(64) for _ in range(lines))
    return f"-----BEGIN RSA PRIVATE KEY-----\n{body}\nq8fZ2w==\n-----END RSA PRIVATE KEY-----\n"


UPPER = string.ascii_uppercase + "234567"
TOKENS = {
    "aws-key": "AKIA" + "".join(CHANCE.choice(UPPER) for _ in range(16)),
    "github-token": f"ghp_{made_up(36)}",
    "gitlab-token": f"glpat-{made_up(20)}",
    "slack-token": f"xoxb-123456789012-{made_up(24)}",
    "anthropic-key": f"sk-ant-api03-{made_up(80)}-AA",
    "openai-key": f"sk-proj-{made_up(60)}",
    "google-key": f"AIza{made_up(35)}",
    "stripe-key": f"sk_live_{made_up(24)}",
    "npm-token": f"npm_{made_up(36)}",
    "pypi-token": f"pypi-AgEIcHlwaS5vcmc{made_up(60)}",
    "huggingface-token": f"hf_{made_up(34)}",
    "sendgrid-key": f"SG.{made_up(22)}.{made_up(43)}",
    "digitalocean-token": f"dop_v1_{'0123456789abcdef' * 4}",
    "age-key": f"AGE-SECRET-KEY-1{'QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L' * 2}"[:74],
    "jwt": f"eyJ{made_up(20)}.eyJ{made_up(40)}.{made_up(43)}",
}
NAMED = {
    "url-password": ("postgres://app:", "hunt3r-Tw0", "@db.local/app"),
    "authorization": ("Authorization: Bearer ", made_up(40), ""),
    "slack-hook": ("https://hooks.slack.com/services/", f"T0A1B2C3D/B0A1B2C3D/{made_up(24)}", ""),
    "telegram-token": ("bot12345678:", f"AA{made_up(33)}", "/send"),
    "secret": ("api_key = '", made_up(32), "'"),
}
SETTINGS = {
    "env file": ("DB_PASSWORD=", "hunt3r!Tw0", "\n"),
    "yaml": ("  password: ", "hunt3r!Tw0", "\n"),
    "json": ('{"client_secret": "', made_up(24), '"}'),
    "json in json": ('{\\"client_secret\\": \\"', made_up(24), '\\"}'),
    "python": ('connect(password="', "hunt3r!Tw0", '")'),
    "option": ("curl --token ", made_up(24), " https://x"),
    "xml": ("<password>", "hunt3r!Tw0", "</password>"),
    "npmrc": ("//registry.example/:_authToken=", made_up(32), "\n"),
}
ORDINARY = [
    'password = os.environ["DB_PASSWORD"]',
    "password: str | None = None",
    'api_key="your-api-key"',
    'password="changeme"',
    "token = secrets.token_urlsafe(32)",
    "secret: ${{ secrets.DEPLOY_KEY_2024 }}",
    "postgres://user:password@localhost/db",
    "https://user:{password}@host",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_" + "x" * 36,
    "-----BEGIN PRIVATE KEY-----",
    "private_key: Ed25519PrivateKey | Ed448PrivateKey",
    "commit 3f786850e387550fdab836ed7e6dc881de23001b",
    "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
    '"AWS::ApiGateway::ApiKey": "48205d4ffd7feba3"',
    "arn:aws:secretsmanager:*:*:secret:eks-local.cluster.x-k8s.io/v1b2",
    "def tokenize(text): return key, token",
]
redact = Redactor()


@pytest.mark.parametrize(("kind", "token"), TOKENS.items(), ids=TOKENS)
def test_a_token_is_known_by_its_shape(kind: str, token: str) -> None:
    for before, after in (("", ""), ("x = '", "'\n"), ("Bearer-", " y"), ("{", "}"), ("(", ").")):
        assert redact(f"{before}{token}{after}") == f"{before}[redacted:{kind}]{after}"


@pytest.mark.parametrize(("kind", "parts"), NAMED.items(), ids=NAMED)
def test_a_secret_is_known_by_what_stands_before_it(kind: str, parts: tuple[str, str, str]) -> None:
    before, secret, after = parts
    assert redact(before + secret + after) == f"{before}[redacted:{kind}]{after}"


@pytest.mark.parametrize("parts", SETTINGS.values(), ids=SETTINGS)
def test_settings_lose_their_passwords(parts: tuple[str, str, str]) -> None:
    before, secret, after = parts
    assert redact(before + secret + after) == f"{before}[redacted:secret]{after}"


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("printed", OUTPUTS.values(), ids=OUTPUTS)
def test_what_ordinary_commands_print_stays(printed: str) -> None:
    pairs = (line.partition("=") for line in OUTPUTS["env"].splitlines())
    known = Redactor({name: value for name, _, value in pairs if name != "GPG_KEY"})
    assert redact(printed) == printed
    assert known(printed) == printed
    assert known.of({"printed": printed, "lines": printed.split("\n")}) == {
        "printed": printed,
        "lines": printed.split("\n"),
    }


def test_a_password_that_is_called_pwd_is_still_one() -> None:
    assert redact("PWD=hunt3r!Tw0x") == "PWD=[redacted:secret]"
    assert redact("db_pwd: 'hunt3r!/Tw0x'") == "db_pwd: '[redacted:secret]'"


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
def test_all_who_look_for_keys_look_for_the_same_ones(token: str) -> None:
    assert [kind for kind, _ in tokens(f"x = '{token}'\n")] == [kind for kind, each in TOKENS.items() if each == token]
    assert looks_secret("LANG", token)


def test_a_token_is_taken_out_to_its_end() -> None:
    for kind, token in (("anthropic-key", f"sk-ant-{made_up(900)}"), ("gitlab-token", f"glpat-{made_up(2000)}")):
        assert redact(f"'{token}' and more") == f"'[redacted:{kind}]' and more"


def test_values_of_variables_are_known_by_the_variable() -> None:
    environment = {
        "ACME_API_KEY": "plain-Words-77",
        "DB_PASSWORD": "correcthorse",
        "SSH_AUTH_SOCK": "/tmp/ssh-XXXXabcd/agent.123",
        "AUTH_URL": "https://login.example/oauth",
        "TOKENIZERS_PARALLELISM": "false-false-false",
        "PASSWORD_MODE": "required",
        "EDITOR": "vim-is-no-secret",
        "SHORT_KEY": "abc",
    }
    known = Redactor(environment)
    assert known("use plain-Words-77 here") == "use [redacted:ACME_API_KEY] here"
    assert known("correcthorse") == "[redacted:DB_PASSWORD]"
    rest = " ".join(value for name, value in environment.items() if name not in {"ACME_API_KEY", "DB_PASSWORD"})
    assert known(rest) == rest
    assert known("correcthorses") == "[redacted:DB_PASSWORD]s"


def test_short_known_values_are_no_parts_of_words() -> None:
    known = Redactor(keys={"K": "abcd1234"})
    assert known("abcd1234 xabcd1234y") == "[redacted:K] xabcd1234y"


@pytest.mark.parametrize("value", ['pl"ain w/ords+77\\ü', "r2D2-c3PO-bb8-k2SO"])
def test_known_values_are_found_however_they_are_written(value: str) -> None:
    known = Redactor(keys={"K": value})
    data = value.encode()
    forms = [value, quote(value), quote(value, safe=""), repr(value)[1:-1].replace("\\'", "'"), data.hex()]
    forms += [base64.b64encode(before + data + b":\n").decode() for before in (b"", b"x", b"xy", b"user:")]
    forms += [base64.urlsafe_b64encode(data).decode()]
    for form in forms[:3] + forms[4:]:
        shown = known(f"<{form}>")
        assert "[redacted:K]" in shown, form
        assert value not in shown


def test_a_key_is_replaced_line_by_line() -> None:
    key = pem()
    shown = redact(f"before\n{key}after\n")
    assert shown.count("\n") == key.count("\n") + 2
    assert shown.splitlines()[2:-2] == ["[redacted:private-key]"] * 7
    assert shown.splitlines()[1] == "-----BEGIN RSA PRIVATE KEY-----"


@pytest.mark.parametrize("prefix", ["{}\t", "src/key.pem:{} ", "+", "    "])
def test_a_key_is_found_behind_line_numbers(prefix: str) -> None:
    numbered = [prefix.format(number) + line for number, line in enumerate(pem().splitlines(), 1)]
    shown = redact("\n".join(["header", *numbered])).splitlines()[1:]
    assert shown[0] == numbered[0]
    assert shown[-1] == numbered[-1]
    assert shown[1:-1] == [prefix.format(number) + "[redacted:private-key]" for number in range(2, 9)]


def test_a_key_on_one_line_and_one_that_is_cut_off() -> None:
    key = pem()
    escaped = key.replace("\n", "\\n")
    body = key.splitlines()[1]
    assert body not in redact(f'{{"private_key": "{escaped}"}}')
    assert body not in redact(key.rpartition("\n-----END")[0])
    assert key.splitlines()[3] not in redact(key.partition("\n")[2])


@pytest.mark.parametrize(
    "line",
    [
        "commit 3f786850e387550fdab836ed7e6dc881de23001b",
        "class AVeryLongNameThatSomebodyGaveToAClassOnce1:",
        "return private_key_of_the_server_in_lower_letters_1",
        "    return key",
    ],
)
def test_lines_after_the_words_that_begin_a_key_stay(line: str) -> None:
    text = f'BEGIN = "-----BEGIN PRIVATE KEY-----"\n{line}\nEND = "-----END PRIVATE KEY-----"\n'
    assert redact(text) == text
    assert redact(text.partition("\n")[2]) == text.partition("\n")[2]


def test_values_below_secret_names_are_secret() -> None:
    shown = redact.of({"password": "hunt3r!Tw0", "path": "a.py", "list": [f"x {TOKENS['npm-token']}", 3, None]})
    assert shown == {"password": "[redacted:secret]", "path": "a.py", "list": ["x [redacted:npm-token]", 3, None]}


def test_a_secret_as_the_name_of_a_field() -> None:
    assert redact.of({TOKENS["npm-token"]: 1, "a": {"b": True}}) == {"[redacted:npm-token]": 1, "a": {"b": True}}


@pytest.mark.parametrize("value", [os.fsdecode(b"Tr0ub4dor\xff&3xyz"), "Tr0ub4dor\ud800&3xyz"], ids=ascii)
def test_half_characters_in_a_key_do_no_harm(value: str) -> None:
    known = Redactor({"ACME_API_KEY": value}, keys={"K": value})
    assert value not in known(f"<{value}>")
    assert MARKER.search(known(f"<{value}>"))


def test_a_key_that_begins_like_a_path_takes_no_time() -> None:
    key = "/" + made_up(60) + "="  # twice the time for every letter, if it is tried in every way
    assert Redactor({"AWS_SECRET_ACCESS_KEY": key})(f"<{key}>") == "<[redacted:AWS_SECRET_ACCESS_KEY]>"
    assert Redactor({"OTHER_KEY": "/srv/keys/" + "a1" * 5_000 + "!"})("/srv/keys/") == "/srv/keys/"


# --- what cannot be looked through ---


class Broken(Redactor):
    """One whose search for keys fails on some texts, as a bug or a lack of memory would have it."""

    def _redacted(self, text: str) -> str:
        if "br3ak" in text:
            raise MemoryError
        return super()._redacted(text)


@pytest.mark.parametrize("text", ["br3ak", "secret and br3ak\n" * 100, "a" * 30_000 + " br3ak"], ids=len)
def test_a_text_that_breaks_the_search_is_dropped_whole(text: str) -> None:
    broken = Broken()
    assert broken(text) == FAILED
    assert broken("and on") == "and on"
    assert broken.of({"said": text, "n": 1}) == {FAILED: FAILED}
    assert broken.of([1, [text]]) == [FAILED]
    assert broken.of(text) == FAILED


def test_a_stream_that_breaks_says_so_once_and_no_more() -> None:
    stream = Broken().stream()
    said = [stream.feed(piece) for piece in ("Well, ", "br3", "ak ", f"{TOKENS['npm-token']} ", "and on ")]
    assert "".join([*said, stream.close()]) == f"Well, {FAILED}"
    assert stream.feed("Another text. ") + stream.close() == "Another text. "


def test_a_stream_that_breaks_at_its_end() -> None:
    stream = Broken().stream()
    assert stream.feed("Well, br3ak") + stream.close() == f"Well, {FAILED}"


@pytest.mark.parametrize("where", ["_lower", "_without_private_keys", "_marker", "_entropy", "_places"])
def test_whatever_part_breaks_nothing_is_let_through(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def breaks(*given: object) -> str:
        raise RuntimeError(given)

    text = f"{pem()}\npassword = 'hunt3r!Tw0' {TOKENS['npm-token']}"
    monkeypatch.setattr(redaction, where, breaks)
    stream = Redactor().stream()
    assert Redactor()(text) == FAILED
    assert Redactor().of({"a": [text]}) == {FAILED: FAILED}
    assert stream.feed(text) + stream.close() == FAILED
    if where in {"_without_private_keys"}:
        assert without_private_keys("a\n\nb") == f"{FAILED}\n\n{FAILED}"


def test_a_search_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "PATIENCE_S", 0.0)
    assert Redactor()("a token, perhaps") == FAILED
    stream = Redactor().stream()
    assert stream.feed("a token, perhaps ") + stream.close() == FAILED


def test_values_that_are_no_json_are_dropped() -> None:
    nested: list[object] = []
    nested.append(nested)
    assert redact.of({"data": b"bytes", "of": object(), "n": None}) == {"data": FAILED, "of": FAILED, "n": None}
    assert redact.of(nested) == [FAILED]
    assert redact.of({"x": nested}) == {FAILED: FAILED}


HOSTILE = ("sk-proj--", "AKIA_", "eyJ-", "pwd=", "://a:", "glpat-", "Bearer a", "-----END PRIVATE KEY-----\n")


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_text_of_near_secrets_is_looked_through(unit: str) -> None:
    """Each beginning would look at all of the rest if it could, and the search would be given up."""
    text = unit * (200_000 // len(unit))
    assert redact(text) == text


@pytest.mark.parametrize("line", ["A" * 100_000 + "_", "a1" * 50_000 + ".", " " * 100_000 + "x", "A" * 100_000 + ": x"])
def test_long_lines_in_a_key_are_looked_through(line: str) -> None:
    assert redact(f"-----BEGIN PRIVATE KEY-----\n{line}\n") != FAILED


KNOWN = Redactor(keys={"FIRST": "correct horse battery", "SECOND": "r2D2-c3PO-bb8"})
_PIECES = st.one_of(
    st.text(max_size=8),
    st.sampled_from([*TOKENS.values(), *ORDINARY, "correct horse battery", "r2D2-c3PO-bb8", " ", "\n", "password = "]),
    st.sampled_from(["".join(parts) for parts in (*NAMED.values(), *SETTINGS.values())]),
)
_TEXTS = st.lists(_PIECES, max_size=6).map("".join)


@given(_TEXTS)
def test_twice_is_once_and_lines_stay(text: str) -> None:
    shown = KNOWN(text)
    assert KNOWN(shown) == shown
    assert shown.count("\n") == text.count("\n")
    assert KNOWN(text) == shown


@settings(max_examples=200)
@given(_TEXTS, st.randoms(use_true_random=False))
def test_pieces_give_what_the_whole_gives(text: str, chance: random.Random) -> None:
    stream = KNOWN.stream()
    shown, place = "", 0
    while place < len(text):
        end = place + chance.randint(1, chance.choice([1, 5, 40]))
        shown += stream.feed(text[place:end])
        place = end
    assert shown + stream.close() == KNOWN(text)


def test_a_stream_holds_little_back() -> None:
    stream = KNOWN.stream()
    assert stream.feed("The answer is ") == "The answer is "
    assert stream.feed("and more") == "and more"
    assert stream.feed(", forty-") == ", "
    assert stream.feed("two, 日本語") == "forty-two, 日本語"
    assert stream.feed(" and correct horse") == " and "
    assert stream.feed(" riding") == "correct horse riding"
    assert stream.close() == ""


@pytest.mark.parametrize("width", [1, 7, 64])
def test_a_key_in_pieces(width: int) -> None:
    text = f"Here it is:\n{pem()}That was it."
    stream = redact.stream()
    shown = "".join(stream.feed(text[place : place + width]) for place in range(0, len(text), width))
    assert shown + stream.close() == redact(text)


def found_in(root: Path) -> tuple[int, list[str]]:
    """How many lines of Python there are, and those that would be changed."""
    lines, changed = 0, []
    for file in root.rglob("*.py"):
        text = file.read_text(encoding="utf-8", errors="replace")
        lines += text.count("\n")
        if (shown := redact(text)) != text:
            pairs = zip(text.split("\n"), shown.split("\n"), strict=True)
            changed += [f"{file.name}: {before.strip()[:120]}" for before, after in pairs if before != after]
    return lines, changed


def test_the_project_itself_and_the_standard_library_hold_no_secrets() -> None:
    source = Path(__file__).parents[1] / "src"
    assert found_in(source)[1] == []
    library = Path(sysconfig.get_paths()["stdlib"])
    lines, changed = found_in(library / "email")
    more, also = found_in(library / "asyncio")
    assert lines + more > 10_000
    assert changed + also == []


def slowest() -> list[tuple[float, str]]:
    """Seconds of computing for 60,000 characters of every beginning of a secret with every sign behind it."""
    spelled = ("AKIA", "AIza", "eyJ", "SG.", ":AA", "pypi-AgE", "GOCSPX-", "-----BEGIN PRIVATE KEY-----\n")
    needles = sorted({*(needle for rule in redaction._RULES for needle in rule.needles), *spelled})
    took: list[tuple[float, str]] = []
    for needle in needles:
        for sign in ("", "-", "_", ".", " ", "/", ":", "=", "='", "a1a1a1a1.", "aaaaaaaaaaaa-"):
            text = (needle + sign) * (60_000 // len(needle + sign))
            started = thread_time()
            redact(text)
            took.append((thread_time() - started, needle + sign))
    return sorted(took, reverse=True)


def main() -> None:
    """Count what would be changed below the directories given: `python -m tests.test_redaction DIR...`.

    Without one, print what takes longest.
    """
    for seconds, unit in slowest()[:10] if not sys.argv[1:] else ():
        sys.stdout.write(f"{seconds:.3f} s {unit!r}\n")
    for root in sys.argv[1:]:
        lines, changed = found_in(Path(root))
        sys.stdout.write("\n  ".join([f"{root}: {len(changed)} of {lines} lines", *changed]) + "\n")


if __name__ == "__main__":
    main()
