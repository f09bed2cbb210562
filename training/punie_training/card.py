"""The data card: what training rows are made of, what was left out and why, and under which licences they come."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from punie_training import corpora, credentials
from punie_training.sources.direct import normalised

if TYPE_CHECKING:
    from punie_training.generate import Rejected, Row

OWN_LICENCE = "Apache-2.0"
"""Of the direct answers, which are written for Punie."""


@dataclass(frozen=True)
class Balance:
    """Rows that call a tool beside rows that do not."""

    tools: int
    direct: int

    @property
    def tool_share(self) -> float:
        """Share of rows that call a tool."""
        return self.tools / max(1, self.tools + self.direct)

    def figures(self) -> Mapping[str, float]:
        """For the card."""
        share = round(self.tool_share, 4)
        return {"tools": self.tools, "direct": self.direct, "tool_share": share, "direct_share": round(1 - share, 4)}


SEED_BALANCES = {"seed, phase 4": Balance(194, 5), "seed, phase 5 (planned)": Balance(150, 50)}
"""From the seed tracker: 97.5/2.5 made the model over-eager, 75/25 was to mend it."""


@dataclass
class Sieve:
    """Lets each row through once, and none with a secret."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Family and reason -> rows."""
    seen: set[bytes] = field(default_factory=set)

    def sifted(self, rows: "Iterable[Row]") -> "Iterator[Row]":
        """Yield the rows that may stay."""
        for row in rows:
            reason = self._fault(row)
            if reason:
                self.dropped[f"{row.family}: {reason}"] += 1
            else:
                yield row

    def _fault(self, row: "Row") -> str:
        if any(True for message in row.messages for _ in credentials.found(message.text)):
            return "a key or token"
        key = _key(row)
        if key in self.seen:
            return "same questions, calls and answers"
        self.seen.add(key)
        return ""


def _key(row: "Row") -> bytes:
    """Equal where questions, calls and answers are; results may differ between projects, the lesson does not."""
    said = [(m.role, normalised(m.content) if m.role == "user" else m.text) for m in row.messages if m.role != "tool"]
    return hashlib.sha256(json.dumps(said).encode()).digest()


def card(
    rows: "Sequence[Row]", rejected: "Sequence[Rejected]", *, skipped: Mapping[str, int], dropped: Mapping[str, int]
) -> dict[str, Any]:
    """Count what the data is made of. `skipped` tasks were never run, `dropped` rows were taken out at the end."""
    ours = Balance(sum(_calls(r) for r in rows), sum(not _calls(r) for r in rows))
    reasons = Counter(f"{r.task.family}: {r.reason}" for r in rejected)
    return {
        "rows": len(rows),
        "direct_share": round(1 - ours.tool_share, 3),
        "balance": {"these rows": ours.figures(), **{name: b.figures() for name, b in SEED_BALANCES.items()}},
        "families": dict(Counter(r.family for r in rows).most_common()),
        "yields": _yields(rows, rejected),
        "rejected": dict(reasons.most_common()),
        "skipped": dict(Counter(skipped).most_common()),
        "dropped": dict(Counter(dropped).most_common()),
        "projects": dict(Counter(r.project or "(direct)" for r in rows).most_common()),
        "licences": _licences(rows),
        "templates": dict(Counter(r.template for r in rows).most_common()),
        "secret_scan": {"patterns": list(credentials.KINDS), "left": 0},
    }


def _calls(row: "Row") -> bool:
    return any(message.calls for message in row.messages)


def _yields(rows: "Sequence[Row]", rejected: "Sequence[Rejected]") -> Mapping[str, Mapping[str, float]]:
    """Family -> runs, rows kept of them, and their share; direct answers and mixtures are not run."""
    kept = Counter(r.family for r in rows if r.family not in {"direct", "mixed"})
    lost = Counter(r.task.family for r in rejected)
    names = sorted(kept | lost)
    return {n: {"run": kept[n] + lost[n], "kept": kept[n], "yield": _share(kept[n], lost[n])} for n in names}


def _share(kept: int, lost: int) -> float:
    return round(kept / (kept + lost), 3)


def _licences(rows: "Sequence[Row]") -> Mapping[str, Mapping[str, str]]:
    used = {r.project for r in rows}
    stated = {p.name: {"version": p.version, "licence": p.licence} for p in corpora.manifest() if p.name in used}
    return {**stated, "": {"version": "", "licence": OWN_LICENCE}}


# --- for people ----------------------------------------------------------------------------------------------------


def page(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    balances = [
        (name, b["tools"], b["direct"], f"{b['tool_share']:.1%} / {b['direct_share']:.1%}")
        for name, b in card["balance"].items()
    ]
    return "\n\n".join(
        [
            "# Training rows",
            f"{card['rows']} rows. Written by `punie train data`, with `card.json` beside it for programs.",
            "## Balance\n\n" + _table(("rows", "with tools", "direct", "share"), balances),
            "## Families\n\n" + _table(("family", "rows", "run", "kept of them"), _family_lines(card)),
            "## Left out\n\nRejected: the run gave no row to learn from. Skipped: never run. Dropped: taken out at the "
            "end.\n\n" + _table(("", "family", "reason", "count"), list(_losses(card))),
            "## Projects\n\n" + _table(("project", "version", "licence", "rows"), _project_lines(card)),
            f"No row holds a secret of {len(card['secret_scan']['patterns'])} known forms.\n",
        ]
    )


def _family_lines(card: Mapping[str, Any]) -> list[tuple[object, ...]]:
    yields = card["yields"]
    nothing = {"run": "", "yield": None}
    return [
        (name, count, (y := yields.get(name, nothing))["run"], "" if y["yield"] is None else f"{y['yield']:.1%}")
        for name, count in card["families"].items()
    ]


def _losses(card: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    for kind in ("rejected", "skipped", "dropped"):
        for what, count in card[kind].items():
            family, _, reason = what.partition(": ")
            yield kind, family, reason, count


def _project_lines(card: Mapping[str, Any]) -> list[tuple[object, ...]]:
    lines: list[tuple[object, ...]] = []
    for name, count in card["projects"].items():
        stated = card["licences"].get("" if name == "(direct)" else name, {"version": "", "licence": "not stated"})
        lines.append((name, stated["version"], stated["licence"], count))
    return lines


def _table(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
