"""Secrets taken out of text, before a model, a file or a screen gets it.

Known values (variables whose names say so, configured keys) are found as they are and in the encodings they travel
in; other secrets by the shape their issuers gave them, or by what stands before them. Each becomes
`[redacted:KIND]`, always the same one for the same text, and no line is added or lost. A text that cannot be looked
through becomes `[redaction failed]` instead, all of it. What a key looks like stands here and nowhere else.

Shapes: the issuers' own descriptions as gathered by GitHub's secret scanning and by gitleaks.
"""

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from time import thread_time
from urllib.parse import quote

MARKER = re.compile(r"\[redacted:[A-Za-z0-9_.-]{1,64}\]")
FAILED = "[redaction failed]"
"""What stands for a text that could not be looked through."""
PATIENCE_S = 20.0
"""Seconds of computing that one text may take; a megabyte takes a tenth of one."""

_SHORTEST = 8
"""Characters of a known value; shorter ones would be found in ordinary words."""
_ROUNDS = 4
_LONG, _REMEMBERED = 500, 64
"""One result passes several places on its way; texts longer than this are looked at once, the last so many of them."""
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:[A-Z0-9]*(?:API|ACCESS|SECRET|PRIVATE|AUTH|SIGNING|ENCRYPTION))?KEYS?(?=_|\d|$)"
    r"|TOKENS?(?=_|\d|$)|SECRET|PASSW|PASSPHRASE|(?:^|_)(?:PASS|PWD|AUTH|DSN|PAT|CREDS?|CREDENTIALS?)(?=_|\d|$)|PRIVATE",
    re.IGNORECASE,
)
_PASSWORD_NAME = re.compile(r"PASS|PWD|SECRET", re.IGNORECASE)
_BROADLY_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|AUTH|CRED|PRIVATE|CERT", re.IGNORECASE)
_NO_SECRET = re.compile(
    r"(?:~|\.{0,2}|[A-Za-z]:)[/\\](?:[\w.@ :-]{1,40}[/\\])*[\w.@ :-]{0,40}"  # a path
    r"|[a-z][a-z0-9+.-]*://[^@\s]*"  # an address without a password
    r"|[\d.,:-]+"
    r"|(?:change_?me|placeholder|required|disabled|enabled|optional|password|username|postgres|undefined)\d*",
    re.IGNORECASE | re.DOTALL,
)


def _marker(kind: str) -> str:
    return f"[redacted:{re.sub(r'[^A-Za-z0-9_.-]', '-', kind)[:64]}]"


class Redactor:
    """Replaces secrets in text. The same text gives the same text, and doing it twice changes nothing.

    `environment` is where variables with secret names come from; `keys` are values that are secret whatever they look
    like, by the name they are to be called. What is given is read once.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, *, keys: Mapping[str, str] | None = None) -> None:
        self._environment, self._keys = dict(environment or {}), dict(keys or {})
        named = [(name, value) for name, value in self._environment.items() if _is_secret(name, value)]
        named += [(name, value.strip()) for name, value in self._keys.items() if len(value.strip()) >= _SHORTEST]
        self._remembered = lru_cache(maxsize=_REMEMBERED)(self._redacted)
        self._known = _forms(tuple(sorted(set(named))))
        self._beginnings = frozenset(form[:end] for form in self._known for end in range(1, len(form) + 1))
        self._spaced = tuple(form for form in self._known if not _WORD.fullmatch(form))

    def knowing(self, keys: Mapping[str, str]) -> "Redactor":
        """The same that knows these keys as well; itself if it does already."""
        if all(value.strip() in self._known or len(value.strip()) < _SHORTEST for value in keys.values()):
            return self
        return Redactor(self._environment, keys={**self._keys, **keys})

    def __call__(self, text: str) -> str:
        """The text without secrets; `FAILED` where that cannot be told."""
        try:
            return self.checked(text)
        except Exception:  # noqa: BLE001 - whatever it was, a text that was not looked through goes no further
            return FAILED

    def checked(self, text: str) -> str:
        """The text without secrets. Raises TimeoutError, or whatever is wrong, and then nothing may be shown."""
        return self._remembered(text) if len(text) > _LONG else self._redacted(text)

    def _redacted(self, text: str) -> str:
        end = thread_time() + PATIENCE_S
        for _ in range(_ROUNDS):  # what stands beside a marker may be a token now
            if (made := self._once(text, end)) == text:
                break
            text = made
        return text

    def _once(self, text: str, end: float) -> str:
        text = self._without_known(text)
        lower = _lower(text)
        wanted = _rules_for(lower)
        for number, rule in enumerate(_RULES) if wanted else ():
            if number in wanted and (made := rule.applied(text, lower, end)) != text:
                text, lower = made, _lower(made)
                wanted = _rules_for(lower)
        return _without_private_keys(text)

    def of(self, value: object) -> object:
        """A value of JSON without secrets in its names and strings; what is stored under a secret name counts too.

        What is no JSON, or cannot be looked through, becomes `FAILED`, in a list or an object where it was one.
        """
        try:
            return self._of(value)
        except Exception:  # noqa: BLE001 - as above
            match value:
                case dict():
                    return {FAILED: FAILED}
                case list() | tuple():
                    return [FAILED]
                case _:
                    return FAILED

    def _of(self, value: object) -> object:
        match value:
            case str():
                return self.checked(value)
            case dict():
                return {self._name(key): self._of_named(str(key), each) for key, each in value.items()}
            case list() | tuple():
                return [self._of(each) for each in value]
            case None | bool() | int() | float():
                return value
            case _:
                return FAILED

    def _name(self, key: object) -> object:
        """The name of a field; most are short words without any sign."""
        return key if not isinstance(key, str) or len(key) < _SHORTEST else self.checked(key)

    def stream(self) -> "Stream":
        """The same for a text that arrives in pieces."""
        return Stream(self)

    def _of_named(self, name: str, value: object) -> object:
        if not isinstance(value, str) or not _SECRET_NAME.search(name):
            return self._of(value)
        whole = f'{name}="{value}"'
        return _marker("secret") if self.checked(whole) == f'{name}="{_marker("secret")}"' else self.checked(value)

    def _without_known(self, text: str) -> str:
        pattern = self._known_in(text)
        return pattern.sub(lambda match: _marker(self._known[match[0]]), text) if pattern else text

    def _known_in(self, text: str) -> re.Pattern[str] | None:
        found = [form for form in self._known if form in text]
        return re.compile("|".join(map(_anywhere, found))) if found else None

    def uncertain_from(self, text: str) -> int:
        """Where the longest end of the text starts that may begin a known value of several words."""
        return min((_overlap(text, form) for form in self._spaced), default=len(text))

    def settles(self, word: str) -> bool:
        """Whether a word stays as it is, whatever follows it without a space: most words of a sentence do."""
        lower = word.lower()
        if not _PLAIN_WORD.fullmatch(word) or lower.endswith(_KEYS) or any(map(lower.__contains__, _ANYWHERE)):
            return False
        if any(needle.startswith(lower) or lower.startswith(needle) for needle in _AT_START):
            return False
        ends = [lower[place:] for place in range(len(lower))]
        if any(needle.startswith(end) for end in ends for needle in _ANYWHERE):
            return False
        return not any(word[place:] in self._beginnings for place in range(len(word)))

    def whole_at(self, text: str, place: int) -> int:
        """The place, or where the known value or the key begins that spans it."""
        for pattern in (self._known_in(text), _KEY_BLOCK):
            for match in pattern.finditer(text) if pattern else ():
                if match.start() < place < match.end():
                    return match.start()
        return place


def _overlap(text: str, form: str) -> int:
    """Where the longest end of the text starts that is a beginning of the form."""
    for length in range(min(len(form), len(text)), 0, -1):
        if text.endswith(form[:length]):
            return len(text) - length
    return len(text)


def _is_secret(name: str, value: str) -> bool:
    """Whether a variable's value is to be kept from others: by its name, if it is not plainly something else."""
    value = value.strip()
    if len(value) < _SHORTEST or not _SECRET_NAME.search(name) or name in {"PWD", "OLDPWD"}:
        return False
    if _NO_SECRET.fullmatch(value) or MARKER.search(value):
        return False
    if _PASSWORD_NAME.search(name):
        return True
    return _entropy(value) >= 2.5 and (len(value) >= 24 or not re.fullmatch(r"[a-z_ -]+|[A-Z_ -]+", value))


@lru_cache(maxsize=16)
def _forms(named: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    """Every form a known value may be met in, with the name of the value; the longest first."""
    forms: dict[str, str] = {}
    for name, value in named:
        for form in _encoded(value):
            if len(form) >= _SHORTEST:
                forms.setdefault(form, name)
    return dict(sorted(forms.items(), key=lambda item: (-len(item[0]), item[0])))


def _encoded(value: str) -> Iterator[str]:
    value = value.strip()
    yield from (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
    data = _bytes(value)
    yield from (quote(data, safe=""), quote(data), quote(data, safe="").replace("%20", "+"))
    yield from (data.hex(), data.hex().upper())
    for skipped in range(3):  # a value stands anywhere in what is encoded, so its first and last letters may differ
        whole = base64.b64encode(b"\0" * skipped + data).decode()
        core = whole[(skipped * 8 + 5) // 6 : (skipped + len(data)) * 8 // 6]
        yield from (core, core.translate(_URL_SAFE)) if len(core) >= 10 else ()
    lines = value.splitlines() if "\n" in value else []
    yield from (line.strip() for line in lines if len(line.strip()) >= 16 and not line.startswith("-----"))


def _bytes(value: str) -> bytes:
    """A value as it stands in a file: half characters are bytes that are no UTF-8, or nothing that has any."""
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")


_URL_SAFE = str.maketrans("+/", "-_")


def _anywhere(form: str) -> str:
    """A pattern for a known value; a short one must not be part of a longer word."""
    escaped = re.escape(form)
    return rf"(?<![A-Za-z0-9]){escaped}(?![A-Za-z0-9])" if len(form) < 12 and form.isalnum() else escaped


def _entropy(value: str) -> float:
    """Bits for each character, by how often the characters stand in the value."""
    return -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values())


# --- shapes ---


@dataclass(frozen=True)
class _Rule:
    """Where the pattern matches at one of the needles, its group `s`, or all of it, is secret.

    The needles are in lower letters and are looked for first: that is many times as fast as the pattern. No pattern
    reads further than a few hundred characters from its needle, or a text of nothing but needles would take for
    ever; a token that goes on there is taken to its end.
    """

    kind: str
    needles: tuple[str, ...]
    pattern: re.Pattern[str]
    counts: Callable[[re.Match[str]], bool]

    def applied(self, text: str, lower: str, until: float) -> str:
        """The text with a marker for each. TimeoutError when `until`, in seconds of this thread, has passed."""
        if thread_time() > until:
            raise TimeoutError
        pieces: list[str] = []
        last = 0
        for start, end in self.found(text, lower, until):
            pieces += [text[last:start], _marker(self.kind)]
            last = end
        return "".join([*pieces, text[last:]]) if pieces else text

    def found(self, text: str, lower: str, until: float = math.inf) -> Iterator[tuple[int, int]]:
        """Where each begins and ends."""
        group = "s" if "s" in self.pattern.groupindex else 0
        end = 0
        needles = [needle for needle in self.needles if needle in lower]
        places = sorted(place for needle in needles for place in _places(lower, needle)) if needles else ()
        for number, place in enumerate(places):
            if number % 1000 == 999 and thread_time() > until:
                raise TimeoutError
            match = self.pattern.match(text, place) if place >= end else None
            if match and self.counts(match):
                start, end = match.span(group)
                if end - start >= _MOST_READ and (rest := _REST.match(text, end)):
                    end = rest.end()
                yield start, end


_MOST_READ = 256
_REST = re.compile(r"[\w.~+/=-]*", re.ASCII)


def _places(text: str, wanted: str) -> Iterator[int]:
    place = text.find(wanted)
    while place >= 0:
        yield place
        place = text.find(wanted, place + 1)


def _lower(text: str) -> str:
    """The text in lower letters, each in its place: a few letters become two."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(char.lower() if char.isascii() else char for char in text)


_MADE_UP = re.compile(
    r"example|change_?me|change_?this|place_?holder|dummy|sample|your|fake|test|secret|passw|redacted|token|insert"
    r"|foo|xxx|\.\.\.|\*\*|0000|1234567|abcdef|qwert",
    re.IGNORECASE,
)
"""What stands for a secret in a text about secrets."""
_TEMPLATE = re.compile(r"\$|%[({sdr]|\{|\}|<|>|\(|\)|\[|\]|^[@!&*]|^-+|::")
_SEGMENT = re.compile(r":[A-Za-z_-]*\Z")
"""What stands before a word that is one of several names with colons between them."""
_A_DIRECTORY = re.compile(r"(?:~|[A-Za-z]:)?[/\\][\w.@ /\\+-]*")
"""What stands behind `PWD=` in every environment."""
_CAMEL = re.compile(r"(?:[A-Z][a-z]{2,}){2}$")
_WORDS = re.compile(r"[A-Za-z]*\d{0,3}(?:[-_.:/,+=@ ][A-Za-z]*\d{0,3})*")
"""Names and versions: words with few digits."""


def _secret(match: re.Match[str]) -> str:
    return match["s"] if "s" in match.re.groupindex else match[0]


def _always(match: re.Match[str]) -> bool:
    del match
    return True


def _is_mixed(match: re.Match[str]) -> bool:
    """Whether a token has digits and letters as chance would have it."""
    value = _secret(match)
    return bool(re.search(r"\d", value) and re.search(r"[A-Za-z]", value)) and _entropy(value) >= 3.0


def _is_random(match: re.Match[str]) -> bool:
    value = _secret(match)
    if _MADE_UP.search(value) or _TEMPLATE.search(value) or _WORDS.fullmatch(value):
        return False
    return _is_mixed(match) and _entropy(value) >= 3.3


def _is_password(match: re.Match[str]) -> bool:
    """Whether the value of something named password is one, and no placeholder or expression."""
    value = _secret(match)
    if _MADE_UP.search(value) or _TEMPLATE.search(value) or MARKER.search(value):
        return False
    kinds = sum(bool(re.search(kind, value)) for kind in ("[a-z]", "[A-Z]", r"\d", r"[^A-Za-z0-9_.]"))
    return kinds >= 2 and bool(re.search(r"\d", value)) and _entropy(value) >= 2.5


def _is_assigned(match: re.Match[str]) -> bool:
    if match["o"] == ":" and _SEGMENT.search(match.string[max(match.start() - 40, 0) : match.start()]):
        return False
    if match["k"].casefold() == "pwd" and _A_DIRECTORY.fullmatch(_secret(match)):
        return False
    if re.search(r"pass|pwd", match["k"], re.IGNORECASE):
        quoted_or_setting = bool(match["q"]) or match["o"] in {"=", ":"}
        return quoted_or_setting and _is_password(match) and not (not match["q"] and _WORDS.fullmatch(_secret(match)))
    if not match["q"] and _CAMEL.search(_secret(match)):
        return False
    return len(_secret(match)) >= 16 and _is_random(match)


_START = r"(?<![A-Za-z0-9])"
_END = r"(?![A-Za-z0-9])"
_KEYS = ("api", "access", "secret", "private", "auth", "account", "encryption", "signing", "master", "shared")
_BEFORE_KEY = "|".join(f"(?<={word})|(?<={word}[_-])" for word in _KEYS)
_KEYWORD = rf"(?P<k>passw(?:or)?d|passphrase|pwd|secret|token|(?:{_BEFORE_KEY})key)\d?"
_NAMED = r"(?:\\*[\"'`])?\]?[ \t]{0,4}(?P<o>:=|=>|={1,2}|:)[ \t]{0,4}[bru]?"


def _rule(
    kind: str, needles: str, pattern: str, counts: Callable[[re.Match[str]], bool] = _always, *, flags: int = 0
) -> _Rule:
    return _Rule(kind, tuple(needles.split()), re.compile(pattern, flags | re.ASCII), counts)


_NEEDLES = "passw passphrase pwd secret token key"

_TOKENS = (
    _rule("aws-key", "akia asia", rf"{_START}(?:AKIA|ASIA)(?!\w{{0,16}}EXAMPLE)[A-Z2-7]{{16}}{_END}"),
    _rule(
        "github-token",
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        rf"{_START}(?:gh[pousr]_[A-Za-z0-9]{{36,255}}|github_pat_\w{{36,255}}){_END}",
        _is_mixed,
    ),
    _rule("gitlab-token", "glpat-", rf"{_START}glpat-[\w-]{{20,256}}", _is_mixed),
    _rule("slack-token", "xox xapp-", rf"{_START}(?:xox[abceoprs]|xapp)-[A-Za-z0-9-]{{10,256}}", _is_mixed),
    _rule("slack-hook", "hooks.slack.com", r"hooks\.slack\.com/[a-z]+/(?P<s>T\w+/[AB]\w+/[\w/]{16,})", _is_mixed),
    _rule("anthropic-key", "sk-ant-", rf"{_START}sk-ant-[\w-]{{16,256}}", _is_mixed),
    _rule(
        "openai-key",
        "sk-",
        rf"{_START}sk-(?:(?:proj|svcacct|admin|or-v1)-[\w-]{{20,256}}|[A-Za-z0-9]{{32,}})",
        _is_mixed,
    ),
    _rule(
        "google-key",
        "aiza ya29. gocspx-",
        rf"{_START}(?:AIza[\w-]{{35}}|ya29\.[\w-]{{30,1000}}|GOCSPX-[\w-]{{20,256}})(?![\w-])",
        _is_mixed,
    ),
    _rule(
        "stripe-key",
        "sk_live_ rk_live_ sk_test_ rk_test_ whsec_",
        rf"{_START}(?:[rs]k_(?:live|test)|whsec)_[A-Za-z0-9]{{16,}}",
        _is_mixed,
    ),
    _rule("npm-token", "npm_", rf"{_START}npm_[A-Za-z0-9]{{36}}{_END}", _is_mixed),
    _rule("pypi-token", "pypi-age", rf"{_START}pypi-AgE[\w-]{{50,256}}", _is_mixed),
    _rule("huggingface-token", "hf_", rf"{_START}hf_[A-Za-z0-9]{{30,}}{_END}", _is_mixed),
    _rule("sendgrid-key", "sg.", rf"{_START}SG\.[\w-]{{22}}\.[\w-]{{43}}(?![\w-])", _is_mixed),
    _rule("telegram-token", ":aa", r"(?<=\d{8}):(?P<s>AA[\w-]{33})(?![\w-])", _is_mixed),
    _rule("digitalocean-token", "dop_v1_ doo_v1_ dor_v1_", rf"{_START}do[opr]_v1_[a-f0-9]{{64}}{_END}"),
    _rule("age-key", "age-secret-key-1", r"AGE-SECRET-KEY-1[A-Z0-9]{50,}"),
    _rule("jwt", "eyj", rf"{_START}eyJ[\w-]{{10,1000}}\.eyJ[\w-]{{10,8000}}\.[\w-]{{16,1000}}"),
    _rule(
        "url-password",
        "://",
        r"://[^/\s:@\"'`\x80-\xa0\u0250-\U0010ffff]{0,64}:(?P<s>[^/\s@\"'`\x80-\xa0\u0250-\U0010ffff]{1,256})@",
        _is_password,
    ),
)
TOKEN_KINDS = ("private-key", *dict.fromkeys(rule.kind for rule in _TOKENS))
"""What is known by the shape its issuer gave it, without a word that announces it."""

_STEM = r"(?:gh[pousr]_|github_pat_|sk-ant-|sk-proj-|glpat-|xox[abp]-|AIza|npm_|pypi-AgE|hf_|eyJ)"
_BEGUN_TOKEN = re.compile(rf"\b(?:{_STEM}|sk-|[rs]k_(?:live|test)_|xox[ceors]-|AKIA|ASIA)[\w-]{{16}}", re.ASCII)
"""What may be a token, also a made-up or a cut one."""

_INTRODUCED = (
    _rule(
        "cut-token",
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ sk-ant- sk-proj- glpat- xoxa- xoxb- xoxp- aiza npm_ pypi-age hf_ eyj",
        rf"{_START}{_STEM}[\w-]{{8,256}}(?=\.\.\.)",
        _is_random,
    ),
    _rule(
        "authorization",
        "bearer authorization",
        r"(?:\bbearer|authorization(?:\\*[\"'])?\s{0,3}[:=]\s{0,3}(?:\\*[\"'])?(?:basic|token|bearer))"
        r"[ \t]+(?P<s>[A-Za-z0-9._~+/-]{16,512}={0,2})",
        _is_random,
        flags=re.IGNORECASE,
    ),
    _rule(
        "secret",
        _NEEDLES,
        rf"{_KEYWORD}{_NAMED}\\*(?P<q>[\"'`])(?P<s>[^\s\"'`\\\x80-\xa0\u0250-\U0010ffff]{{6,512}})(?=\\*[\"'`])",
        _is_assigned,
        flags=re.I,
    ),
    _rule(
        "secret",
        _NEEDLES,
        rf"{_KEYWORD}{_NAMED}(?P<q>)(?P<s>[\w+/=.~@%^*!?#$:-]{{8,512}})(?=[\s,;\"'&\\]|\Z)",
        _is_assigned,
        flags=re.I,
    ),
    _rule(
        "secret",
        "--pass --token --secret --api-key",
        r"--(?P<k>password|passwd|passphrase|token|secret|api-key)[ \t]+(?P<q>[\"']?)(?P<o>)"
        r"(?P<s>[^\s\"'`\\\x80-\xa0\u0250-\U0010ffff]{8,512})",
        _is_random,
        flags=re.IGNORECASE,
    ),
    _rule(
        "secret",
        "password> passwd> secret> token> apikey>",
        r"(?:password|passwd|secret|token|apikey)>(?P<s>[^\s<>\x80-\xa0\u0250-\U0010ffff]{8,512})</",
        _is_password,
        flags=re.IGNORECASE,
    ),
)
_RULES = (*_TOKENS, *_INTRODUCED)
_NUMBERED = tuple((needle, number) for number, rule in enumerate(_RULES) for needle in rule.needles)


def _rules_for(lower: str) -> set[int]:
    """The rules one of whose needles is there: of most words of an answer there is none."""
    return {number for needle, number in _NUMBERED if needle in lower}


def tokens(text: str) -> Iterator[tuple[str, str]]:
    """Yield (one of TOKEN_KINDS, the text of it) of all that is known by its shape alone. For those who only look."""
    yield from (("private-key", match[0]) for match in _BEGUN_KEY.finditer(text))
    lower = _lower(text)
    for rule in _TOKENS:
        yield from ((rule.kind, text[start:end]) for start, end in rule.found(text, lower))


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable, or a header, may hold a key or a password: for what is better left out than handed on."""
    if _BROADLY_SECRET_NAME.search(name) or _BEGUN_KEY.search(value) or _BEGUN_TOKEN.search(value):
        return True
    return any(rule.pattern.search(value) for rule in _TOKENS)


_ANYWHERE, _AT_START = (
    tuple(needle for rule in _RULES if rule.pattern.pattern.startswith(_START) == anchored for needle in rule.needles)
    for anchored in (False, True)
)
_PLAIN_WORD = re.compile(r"[A-Za-z]{1,30}[.,!?;]*")


# --- private keys ---

_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_FINISH = re.compile(r"-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_BLOCK = re.compile(rf"{_BEGIN.pattern}.*?{_FINISH.pattern}", re.DOTALL)
_BEGUN_KEY = re.compile(rf"{_BEGIN.pattern}\s*[A-Za-z0-9+/=:]")
_BODY = re.compile(
    r"(?<![A-Za-z0-9+/])(?=(?:[A-Za-z]*+[\d+/]){2})(?=[a-z\d+/]*+[A-Z])(?=[A-Z\d+/]*+[a-z])"
    r"[A-Za-z0-9+/]{40,}+={0,2}(?![\w.-])"
)
"""A line of a key: letters of both cases and digits, as chance has them, which rules out names and hashes."""
_LAST = re.compile(r"(?:\s*\d+\t|\S+:\d+[: ])?[^\w+/=]*(?P<s>=?[A-Za-z0-9+/]{2,}={0,2})(?=[\s\"',;)]*\Z)")
"""The last line of a key may be short; nothing but a line number stands before it."""
_LINE_ENDS = re.compile(r"(\\+[nrt])")
_HEADER = re.compile(r"[A-Z][A-Za-z-]{1,40}: ")
_PRIVATE_KEY = _marker("private-key")


def without_private_keys(text: str) -> str:
    """The text with every line of a key's body replaced in its place, whatever stands before it on the line.

    For those who show a part of a text in which a key may begin further up. `FAILED` in every line where that cannot be
    told.
    """
    try:
        return _without_private_keys(text)
    except Exception:  # noqa: BLE001 - as in Redactor
        return re.sub("[^\n]+", FAILED, text)


def _without_private_keys(text: str) -> str:
    if "PRIVATE KEY" not in text:
        return text
    lines = text.split("\n")
    inside, last = False, -1
    for number, line in enumerate(lines):
        begins, ends = _BEGIN.search(line), _FINISH.search(line)
        if begins:
            inside = True
        elif ends and not inside:
            _mask_above(lines, number)
        if not inside:
            continue
        start = begins.end() if begins else int(line.startswith(("+", "-")))  # the sign of a line in a diff
        end = ends.start() if ends else len(line)
        masked = _masked(line[start:end], follows=last == number - 1)
        if masked != line[start:end]:
            lines[number], last = line[:start] + masked + line[end:], number
        elif not begins and line.strip() and not _HEADER.search(line) and not ends:
            inside = False
        inside = inside and not ends
    return "\n".join(lines)


def _masked(piece: str, *, follows: bool) -> str:
    """A line of a key's body, or all of a body that is written on one line."""
    parts = _LINE_ENDS.split(piece)
    for place in range(0, len(parts), 2):
        masked = _BODY.sub(_PRIVATE_KEY, parts[place])
        if masked == parts[place] and follows and (found := _LAST.match(masked)):
            masked = masked[: found.start("s")] + _PRIVATE_KEY + masked[found.end("s") :]
        follows = masked != parts[place] or (follows and not parts[place])
        parts[place] = masked
    return "".join(parts)


def _mask_above(lines: list[str], end: int) -> None:
    """A key of which only the end is shown."""
    first = end
    while first and (_BODY.search(lines[first - 1]) or (first == end > 1 and _BODY.search(lines[end - 2]))):
        first -= 1
    follows = False
    for number in range(first, end):
        masked = _masked(lines[number], follows=follows)
        follows = masked != lines[number]
        lines[number] = masked


# --- text in pieces ---

_WORD = re.compile(r"(?<![!-~\u00a1-\u02ff])[!-~\u00a1-\u02ff]*+\Z")
_INTRODUCTION = re.compile(
    rf"(?:{_KEYWORD}(?:\\*[\"'`])?\]?[ \t]{{0,4}}(?::=|=>|={{1,2}}|:)?[ \t]{{0,4}}"
    r"|--(?:password|passwd|passphrase|token|secret|api-key)[ \t]*"
    r"|authorization(?:\\*[\"'])?\s{0,3}(?:[:=]\s{0,3}(?:\\*[\"'])?(?:(?:basic|token|bearer)[ \t]*)?)?"
    r"|bearer[ \t]*|-----BEGIN [A-Z0-9 ]{0,60}-{0,5})\Z",
    re.IGNORECASE,
)
_MOST_HELD = 20_000
_LONGEST_BEFORE = 60
_LOOKED_BACK = 200


class Stream:
    """Replaces secrets in a text that arrives in pieces; only what may still become one is held back."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = ""
        self._failed = False
        self._before = ""
        """The beginning of the word that goes on: its middle is no place where a token begins."""

    def feed(self, piece: str) -> str:
        """Return what is certain of the text so far; `FAILED` once, and nothing more, when that cannot be told."""
        if self._failed:
            return ""
        self._held += piece
        try:
            return self._released(self._ready())
        except Exception:  # noqa: BLE001 - as in Redactor
            self._failed, self._held, self._before = True, "", ""
            return FAILED

    def close(self) -> str:
        """Return the rest: no more will come. What is fed next is another text."""
        failed, self._failed = self._failed, False
        if failed or not self._held:
            return ""
        try:
            return self._released(len(self._held))
        except Exception:  # noqa: BLE001 - as in Redactor
            self._held = self._before = ""
            return FAILED

    def _released(self, end: int) -> str:
        ready, self._held = self._held[:end], self._held[end:]
        shown = self._redactor.checked(self._before + ready)
        whole = shown.removeprefix(self._before) if shown.startswith(self._before) else self._redactor.checked(ready)
        word = _WORD.search(self._before + ready)
        self._before = word[0] if word else ""
        return whole

    def _ready(self) -> int:
        ready = self._certain()
        return ready if len(self._held) - ready <= _MOST_HELD else len(self._held)

    def _certain(self) -> int:
        begin = max((match.start() for match in _BEGIN.finditer(self._held)), default=-1)
        is_open = begin >= 0 and not _FINISH.search(self._held, begin)
        start, held = begin if is_open else self._redactor.uncertain_from(self._held), -1
        word = self._word(start)
        if start == len(self._held) > word and len(self._before) < _LONGEST_BEFORE and self._stays(word):
            return start
        while start != held:
            held, start = start, self._redactor.whole_at(self._held, self._word(start))
            introduction = _INTRODUCTION.search(self._held, max(start - _LOOKED_BACK, 0), start)
            start = introduction.start() if introduction else start
        return start

    def _stays(self, place: int) -> bool:
        """Whether the word that begins here is certain: nothing before it announces a secret."""
        announced = _INTRODUCTION.search(self._held, max(place - _LOOKED_BACK, 0), place)
        whole = self._redactor.whole_at(self._held, place)
        return not announced and whole == place and self._redactor.settles(self._held[place:])

    def _word(self, end: int) -> int:
        """Where the word that ends here begins."""
        first = max(end - _MOST_HELD, 0)
        word = _WORD.search(self._held, first, end)
        return word.start() if word else first
