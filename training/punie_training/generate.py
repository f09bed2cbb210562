"""Makes the training rows: the real agent with its real tools, on a scripted model that follows the oracle's plan.

What is kept has the form of a real run by construction, and an answer that the oracle agrees with.
"""

import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from pydantic_ai import Agent
from pydantic_ai.exceptions import AgentRunError
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel

from punie.agent import create_agent
from punie.agent.approval import approve_all
from punie.config import AgentConfig
from punie.errors import PunieError
from punie.tools import Workspace
from punie.wire import Message, View, conversation, expand
from punie_training import corpora
from punie_training.card import Sieve, card, page
from punie_training.corpora import scratch_copy
from punie_training.families import FAMILIES, Family, quota
from punie_training.oracle import Oracle
from punie_training.score import mark
from punie_training.sources import direct
from punie_training.tasks import Expect, Subject, Task, Turn, Voice

MOST_OF_ONE_WORDING = 0.04
MOST_OF_ONE_PROJECT = 0.08
PROJECT_USED_UP = "project used up"
LONGEST_ROW = 5_000
"""Characters of a row as a small model sees it; some 1,500 tokens."""
STRANGERS = (
    *("UserRepository", "PaymentGateway", "OrderService", "DatabaseManager", "CacheBackend"),
    *("EmailSender", "TokenValidator", "ReportBuilder", "send_email", "parse_invoice"),
    *("load_settings", "build_report", "connect_db", "get_user_by_id", "retry_request"),
    *("MAX_RETRIES", "API_KEY", "DEFAULT_LOCALE", "QueryPlanner", "ImageResizer"),
    *("resize_image", "WebhookHandler", "ShoppingCart", "calculate_tax", "PluginLoader"),
    *("FeatureFlag", "BillingAccount", "compress_file", "JobScheduler", "AuditLog"),
    *("TenantMixin", "sync_calendar", "render_chart"),
)

NAME_PARTS = (
    *("http", "xml", "json", "sql", "url", "uuid", "ipv4", "html", "csv", "ssh", "tls", "utf8", "ast", "cpu", "ids"),
    *("parse", "fetch", "merge", "empty", "handle", "convert", "lookup", "flush", "resolve", "unpack", "guess", "bind"),
    *("protocol", "transition", "method", "keyword", "registry", "timestamp", "callback", "wrapper", "schema"),
    *("buffer", "graph", "ledger", "tracer", "wizard", "payload", "cursor", "vector", "matrix", "quota", "lexer"),
    *("crazy", "unhandled", "nested", "shallow", "lazy", "raw", "remote", "frozen", "stale", "partial", "default"),
    *("manager", "factory", "visitor", "mixin", "adapter", "proxy", "policy", "worker", "sink", "probe", "gateway"),
)


@dataclass(frozen=True)
class Row:
    """One training example, as it stands in the JSONL file."""

    id: str
    family: str
    project: str
    template: str
    question: str
    messages: tuple[Message, ...]
    expect: Expect | None = None

    def line(self) -> str:
        """The row as one line of JSON."""
        record = {**asdict(self), "messages": [_plain(m) for m in self.messages]}
        return json.dumps(record, ensure_ascii=False)


def _plain(message: Message) -> dict[str, object]:
    calls = [{"name": c.name, "arguments": json.loads(c.arguments)} for c in message.calls]
    return {"role": message.role, "content": message.content, "calls": calls}


@dataclass(frozen=True)
class Rejected:
    """A task that gave no row, and why."""

    task: Task
    reason: str


# --- one conversation ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Script:
    """The plan of a task as a model: it answers each question with the next step, then with the answer."""

    turns: Sequence[Turn]

    @cached_property
    def model(self) -> FunctionModel:
        """The script as a PydanticAI model."""
        return FunctionModel(self._reply)

    def _reply(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        del info
        asked, done = _progress(messages)
        turn = self.turns[asked - 1]
        if done < len(turn.steps):
            step = turn.steps[done]
            return ModelResponse([ToolCallPart(step.tool, json.dumps(dict(step.arguments), ensure_ascii=False))])
        return ModelResponse([TextPart(turn.answer)])


def _progress(messages: Sequence[ModelMessage]) -> tuple[int, int]:
    """Return how many questions were asked, and the replies since the last of them."""
    asked = done = 0
    for message in messages:
        if isinstance(message, ModelResponse):
            done += 1
        elif any(part.part_kind == "user-prompt" for part in message.parts):
            asked, done = asked + 1, 0
    return asked, done


@dataclass
class Studio:
    """One project, ready to be asked about."""

    project: str
    root: Path
    workspace: Workspace = field(init=False)
    oracle: Oracle = field(init=False)

    def __post_init__(self) -> None:
        # A search that ran out of time on a busy machine would change what is asked.
        self.workspace = Workspace(self.root, search_timeout_s=120)
        self.oracle = Oracle(self.root)

    async def run(self, task: Task, *, changes: bool) -> Row | Rejected:
        """Act the task out and keep it if the oracle agrees with the answer."""
        if not changes:
            return await _act(task, self.workspace)
        with scratch_copy(self.root) as root:
            return await _act(task, Workspace(root))


async def _act(task: Task, workspace: Workspace) -> Row | Rejected:
    agent = create_agent(AgentConfig(), model=Script(task.turns).model, approve=approve_all)
    history: list[ModelMessage] = []
    for turn in task.turns:
        try:
            history = await _ask(agent, turn, workspace=workspace, history=history)
        except (AgentRunError, PunieError) as error:
            return Rejected(task, f"run failed: {type(error).__name__}")
        reason = _fault(turn, history, root=Path(workspace.root))
        if reason:
            return Rejected(task, reason)
    messages = tuple(m for m in conversation(history) if m.role != "system")
    last = task.turns[-1]
    row = Row(task.id, task.family, task.project, task.template, last.question, messages, last.expect)
    return row if size(messages) <= LONGEST_ROW else Rejected(task, "too long")


async def _ask(
    agent: Agent[Workspace, str], turn: Turn, *, workspace: Workspace, history: list[ModelMessage]
) -> list[ModelMessage]:
    result = await agent.run(turn.question, deps=workspace, message_history=history or None)
    return result.all_messages()


def _fault(turn: Turn, history: Sequence[ModelMessage], *, root: Path) -> str:
    """Say why the run is no good example; "" if it is one."""
    if any(is_refusal(part) for m in history if isinstance(m, ModelRequest) for part in m.parts):
        return "a tool refused the call"
    messages = conversation(history)
    final = messages[-1]
    if final.content != turn.answer:
        return "the agent changed the answer"
    marked = mark(expand(final.content, messages), turn.expect, root=root)
    if marked.right:
        return ""
    return f"answer differs: precision {marked.precision:.1f} recall {marked.recall:.1f}"


def is_refusal(part: ModelRequestPart) -> bool:
    """Whether a part of a request says that a call was refused or that the model was asked again."""
    if isinstance(part, ToolReturnPart):
        return part.outcome != "success"
    return not isinstance(part, UserPromptPart | SystemPromptPart)


def size(messages: Sequence[Message]) -> int:
    """Characters of a conversation as a small model sees it."""
    view = View()
    return sum(len(view.of(m.content) if m.role == "tool" else m.text) for m in messages)


# --- many ----------------------------------------------------------------------------------------------------------


@dataclass
class Harvest:
    """The rows so far, under the caps, each question with its calls once."""

    wanted: int
    rows: list[Row] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Family and reason -> tasks that were not run."""
    by_wording: Counter[str] = field(default_factory=Counter)
    by_project: Counter[str] = field(default_factory=Counter)
    seen: set[str] = field(default_factory=set)

    def refuses(self, task: Task) -> str:
        """Say why a task is not even tried; "" if it is."""
        if task.id in self.seen:
            return "asked before"
        if self.by_wording[task.template] >= max(3, MOST_OF_ONE_WORDING * self.wanted):
            return "wording used up"
        if self.by_project[task.project] >= max(2, MOST_OF_ONE_PROJECT * self.wanted):
            return PROJECT_USED_UP
        return ""

    def add(self, outcome: Row | Rejected) -> bool:
        """Keep the outcome; True for a row."""
        if isinstance(outcome, Rejected):
            self.rejected.append(outcome)
            return False
        self.rows.append(outcome)
        self.seen.add(outcome.id)
        self.by_wording[outcome.template] += 1
        self.by_project[outcome.project] += 1
        return True


def studios(split: corpora.Split, *, cache_dir: Path) -> tuple[Studio, ...]:
    """Open every project of a split."""
    projects = corpora.manifest()
    homes = corpora.workspaces(projects, cache_dir=cache_dir)
    return tuple(Studio(p.name, homes[p.name]) for p in projects if p.split == split)


@contextmanager
def renamed(opened: Sequence[Studio], *, seed: int) -> Iterator[tuple[Studio, ...]]:
    """Give each project once more, its directories and half of its modules under names that nobody has read before.

    Few projects have few paths, which a model knows by heart before it has learnt to copy one.
    """
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory).resolve()
        yield tuple(
            Studio(s.project, _renamed_copy(s.root, home / s.root.name, random.Random(f"{seed} {s.project}")))
            for s in opened
        )


def _renamed_copy(root: Path, target: Path, rng: random.Random) -> Path:
    names: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        within = path.relative_to(root)
        if path.is_symlink() or not path.is_file() or any(part.startswith(".") for part in within.parts):
            continue
        parts = [names.setdefault(part, _new_name(rng, part)) for part in within.parts]
        new = target.joinpath(*parts)
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, new)
    return target


def _new_name(rng: random.Random, name: str) -> str:
    """Another name for a directory or a module; files that tools know by name keep theirs."""
    pure = PurePosixPath(name)
    if pure.suffix not in {"", ".py"} or name.startswith("__") or not name.islower() or rng.random() < 0.3:
        return name
    words = [rng.choice(NAME_PARTS) if rng.random() < 0.4 else _syllables(rng) for _ in range(rng.choice((1, 1, 2)))]
    new = rng.choice(("", "", "_")).join(words)
    return name if new in sys.stdlib_module_names else new + pure.suffix  # commands run python here


def _syllables(rng: random.Random) -> str:
    parts = [
        rng.choice("bcdfghjklmnprstvwxz") + rng.choice(("a", "e", "i", "o", "u", "er", "an", "ist", "ul")) for _ in "xx"
    ]
    return (
        rng.choice(("", "a", "in", "ap", "mar", "st"))
        + "".join(parts)
        + rng.choice(("", "s", "x", "ly", "er", "ow", "kit"))
    )


def subjects(
    opened: Sequence[Studio], *, split: corpora.Split, seed: int, held_out: bool = False
) -> tuple[Subject, ...]:
    """Give each project a voice, and the names of the others as names it may lack."""
    twins = [topic for topic in direct.load(split) if topic.twin]
    names = {s.project: [d.name for d in s.oracle.definitions if len(d.name) > 4 and not d.nested] for s in opened}
    made: list[Subject] = []
    voice_decks: dict[str, list[int]] = {}
    for index, studio in enumerate(opened):
        rng = random.Random(seed * 1000 + index)
        others = [n for project, group in names.items() if project != studio.project for n in group]
        foreign = rng.sample(sorted(set(others)), min(60, len(set(others))))
        known = {name.casefold() for name in studio.oracle.by_name}
        strange = (*STRANGERS, *foreign, *invented_names(rng, count=60))
        lacking = [n for n in dict.fromkeys(strange) if n.rpartition(".")[2].casefold() not in known]
        voice = Voice(rng, held_out=held_out, recent=voice_decks)
        made.append(Subject(studio.project, studio.oracle, voice, tuple(lacking), twins))
    return tuple(made)


def invented_names(rng: random.Random, *, count: int) -> list[str]:
    """Return names in every style of writing: copying them letter by letter is what a small model has to learn."""
    return [_styled(rng, rng.sample(NAME_PARTS, rng.randint(1, 3))) for _ in range(count)]


def _styled(rng: random.Random, parts: Sequence[str]) -> str:
    if rng.random() < 0.15:
        parts = [*parts, str(rng.randint(1, 64))]
    capital = [p.capitalize() for p in parts]
    styles = (
        *("_".join(parts), "_" + "_".join(parts), "".join(capital), "_" + "".join(capital)),
        *("".join([parts[0], *capital[1:]]), "_".join(parts).upper(), "".join([parts[0].upper(), *capital[1:]])),
        *("".join(parts), "_".join(capital), f"{''.join(capital)}.{'_'.join(parts[::-1])}"),
    )
    return rng.choice(styles)


async def harvest(opened: Sequence[Studio], *, wanted: int, seed: int = 0) -> Harvest:
    """Run tasks of each family, project by project in turn, until each family has its share."""
    crop = Harvest(wanted)
    asked = subjects(opened, split="train", seed=seed)
    for kind in FAMILIES:
        streams = [(studio, kind.tasks(subject)) for studio, subject in zip(opened, asked, strict=True)]
        await _gather(crop, kind, streams, quota=quota(kind, wanted=wanted))
    return crop


async def _gather(crop: Harvest, kind: Family, streams: list[tuple[Studio, Iterator[Task]]], *, quota: int) -> None:
    while quota > 0 and streams:
        for studio, tasks in list(streams):
            task = next(tasks, None)
            if task is None:
                streams.remove((studio, tasks))
            elif reason := crop.refuses(task):
                crop.skipped[f"{kind.name}: {reason}"] += 1
            elif quota > 0:
                quota -= crop.add(await studio.run(task, changes=kind.changes))


# --- direct answers and mixtures -----------------------------------------------------------------------------------


def direct_rows(split: corpora.Split) -> Iterator[Row]:
    """Questions that are answered without a tool."""
    for topic in direct.load(split):
        for index, question in enumerate(topic.questions):
            messages = (Message("user", question), Message("assistant", topic.answer))
            identity = f"{topic.id}-{index}"
            yield Row(identity, "direct", "", f"direct/{topic.category}", question, messages)


def mixtures(tool_rows: Sequence[Row], plain: Sequence[Row], *, count: int, seed: int) -> Iterator[Row]:
    """Conversations that go from a tool question to a general one, and back: the choice is made anew each time."""
    rng = random.Random(seed)
    short = [r for r in tool_rows if r.family not in {"followup", "sequence"} and size(r.messages) <= LONGEST_ROW // 3]
    for index in range(min(count, len(short), len(plain))):
        tool, general = rng.choice(short), rng.choice(plain)
        pair = (tool, general) if index % 2 else (general, tool)
        messages = (*pair[0].messages, *pair[1].messages)
        last = pair[1]
        yield Row(f"{tool.id}-{general.id}", "mixed", tool.project, last.template, last.question, messages, last.expect)


# --- files ---------------------------------------------------------------------------------------------------------


def write_rows(rows: Iterable[Row], path: Path) -> int:
    """Write JSON lines; returns how many."""
    lines = [row.line() + "\n" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_text("".join(lines), "utf-8")
    scratch.replace(path)
    return len(lines)


async def build(out: Path, *, cache_dir: Path, wanted: int = 3200, seed: int = 0) -> Mapping[str, object]:
    """Write `train.jsonl` and its data card (`card.json`, and `card.md` for people); returns the card."""
    opened = studios("train", cache_dir=cache_dir)
    with renamed(opened, seed=seed) as again:
        crop = await harvest((*opened, *again), wanted=wanted, seed=seed)
    plain = list(direct_rows("train"))
    made = [*crop.rows, *plain, *mixtures(crop.rows, plain, count=wanted // 30, seed=seed)]
    sieve = Sieve()
    rows = list(sieve.sifted(made))
    random.Random(seed).shuffle(rows)
    write_rows(rows, out / "train.jsonl")
    counted = card(rows, crop.rejected, skipped=crop.skipped, dropped=sieve.dropped)
    counted["view_characters"] = sum(size(row.messages) for row in rows)
    (out / "card.json").write_text(json.dumps(counted, indent=2) + "\n", "utf-8")
    (out / "card.md").write_text(page(counted), "utf-8")
    return counted


__all__ = ["Row", "Script", "Studio", "build", "harvest", "studios", "write_rows"]
