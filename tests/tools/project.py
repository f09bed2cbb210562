"""A workspace on disk for the tests of tools, and the tools as plain calls in it."""

from pathlib import Path

from pydantic_ai import ModelRetry, RunContext
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RunUsage

from punie.tools import TOOLS, Workspace


class Project:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.workspace = Workspace(root)

    @property
    def context(self) -> RunContext[Workspace]:
        return RunContext(deps=self.workspace, model=TestModel(), usage=RunUsage())

    def write(self, path: str, content: str | bytes = "") -> Path:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)
        return place

    def bytes_of(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def call(self, tool: str, *arguments: object, **named: object) -> str:
        result = TOOLS[tool](self.context, *arguments, **named)
        assert isinstance(result, str)
        return result

    def lines(self, tool: str, *arguments: object, **named: object) -> list[str]:
        return self.call(tool, *arguments, **named).split("\n")

    def refusal(self, tool: str, *arguments: object, **named: object) -> str:
        """The message of the ModelRetry the call must raise."""
        try:
            result = self.call(tool, *arguments, **named)
        except ModelRetry as refusal:
            return refusal.message
        raise AssertionError(f"not refused: {result}")
