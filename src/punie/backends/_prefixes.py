"""Attention caches on disk: what one process has read of a conversation, the next one need not read again.

Two kinds are kept: the beginning that every prompt shares (instructions and tools), written the first time it is
read, and a whole conversation that has become long. A conversation is written when its model is closed, or has been
idle for a while and has much that is new, never between a question and its answer. Files hold what was said, so they
are the user's alone.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from punie import wire
from punie.backends._engine import Engine
from punie.config import EngineOptions

LONG_BEGINNING = 192
"""Tokens of instructions and tools from which on keeping them is worth a file: half a second on two cores."""
LONG_CONVERSATION = 1024
"""The same for a conversation, whose file is larger and used once."""
_MOST_FILES = 16
_MOST_BYTES = 2 << 30
_LARGEST_FILE = 1 << 29
"""Bytes: a second on most disks, which somebody waits for at the end of the program."""
_SPARE_BYTES = 1 << 30
"""What must be free on the disk, or nothing is kept."""


class Prefixes:
    """The kept caches of one model. Nothing here ever fails: without a file the prompt is read again."""

    def __init__(self, directory: Path, *, model: str, bytes_per_token: float = 0.0) -> None:
        """`model`: whatever the numbers in a cache depend on besides the tokens: engine, weights, adapter, bits."""
        self.directory = directory
        self._model = model
        self._bytes_per_token = bytes_per_token

    def restore(self, engine: Engine, conversation: str) -> int:
        """Let the engine take up what is kept of this conversation; returns how many tokens that is."""
        path = self.path(conversation)
        if not path.is_file():
            return 0
        count = engine.restore(path)
        try:
            if count:
                os.utime(path)
            else:
                path.unlink()
        except OSError:
            pass  # another process has removed it
        return count

    def save(self, engine: Engine, conversation: str, *, tokens: int = 0) -> int:
        """Keep what the engine has cached, `tokens` at least; returns how many, 0 if there is no room."""
        if tokens * self._bytes_per_token > _LARGEST_FILE:
            return 0
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if shutil.disk_usage(self.directory).free < _SPARE_BYTES:
                return 0
            count = engine.save(self.path(conversation))
            self._prune()
        except OSError:
            return 0
        return count

    def path(self, conversation: str) -> Path:
        """The file of a conversation."""
        digest = hashlib.sha256(f"{self._model}\0{conversation}".encode()).hexdigest()
        return self.directory / f"{digest[:32]}.cache"

    def _prune(self) -> None:
        """Remove what was used longest ago, and what a process that died has left."""
        files = [(path.stat(), path) for path in self.directory.iterdir() if path.is_file()]
        files.sort(key=lambda found: found[0].st_mtime_ns, reverse=True)
        total = 0
        for i, (stat, path) in enumerate(files):
            total += stat.st_size
            if i >= _MOST_FILES or total > _MOST_BYTES:
                path.unlink(missing_ok=True)


def prefixes_of(
    cache_dir: Path, weights: Path, *, options: EngineOptions, engine: str, bytes_per_token: float
) -> Prefixes | None:
    """Where the caches of this file or directory of weights are kept, or None if the user wants none.

    `engine`: its name and version, and an adapter that is not part of the weights. `bytes_per_token`: of the cache.
    """
    if not options.prefix_cache:
        return None
    stat = weights.stat()
    kind = f"{options.kv_bits}/{options.kv_quantize_after if options.kv_bits else 0}"
    place = f"{weights.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    return Prefixes(cache_dir / "prefixes", model=f"{engine}|{place}|{kind}", bytes_per_token=bytes_per_token)


def conversation_key(chat: wire.Wire, messages: Sequence[wire.Message], tools: Sequence[dict[str, Any]]) -> str:
    """What a conversation is known by when it goes on: template, tools, instructions and the first question."""
    first = next((i + 1 for i, message in enumerate(messages) if message.role == "user"), len(messages))
    beginning = [(message.role, message.content) for message in messages[:first]]
    parts = json.dumps([chat.source, repr(chat.view), list(tools), beginning], ensure_ascii=False)
    return hashlib.sha256(parts.encode(errors="surrogatepass")).hexdigest()
