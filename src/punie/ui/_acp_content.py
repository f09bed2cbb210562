"""What a client sends as a prompt, as the text that the model gets."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from acp.schema import (
    AudioContentBlock,
    EmbeddedResourceContentBlock,
    ImageContentBlock,
    ResourceContentBlock,
    TextContentBlock,
    TextResourceContents,
)

from punie.errors import UsageError
from punie.ui._clean import one_line

Block = TextContentBlock | ImageContentBlock | AudioContentBlock | ResourceContentBlock | EmbeddedResourceContentBlock
_LINES = re.compile(r"L(\d+)(?:[-:]L?(\d+))?")


def prompt_text(blocks: Sequence[Block], *, roots: Sequence[Path]) -> str:
    """The text, with files below one of the roots by their paths from it, and what was attached at the end.

    UsageError for what the model cannot be given: pictures, sounds and files that are not text.
    """
    said = "".join(_inline(block, roots) for block in blocks).strip()
    return "\n\n".join(filter(None, [said, *_attached(blocks, roots)]))


def _inline(block: Block, roots: Sequence[Path]) -> str:
    match block:
        case TextContentBlock():
            return block.text
        case ResourceContentBlock():
            return named(block.uri, roots)
        case EmbeddedResourceContentBlock(resource=TextResourceContents()):
            return named(block.resource.uri, roots)
        case EmbeddedResourceContentBlock():
            raise UsageError(f"{named(block.resource.uri, roots)} is not text.", "Name it in the prompt instead.")
        case ImageContentBlock():
            raise UsageError("Punie takes no images.", "Describe what is on it.")
        case AudioContentBlock():
            raise UsageError("Punie takes no sound.", "Write what is said.")


def _attached(blocks: Sequence[Block], roots: Sequence[Path]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, EmbeddedResourceContentBlock) and isinstance(block.resource, TextResourceContents):
            text = block.resource.text.rstrip("\n")
            yield f"<file name={named(block.resource.uri, roots)!r}>\n{text}\n</file>"


def named(uri: str, roots: Sequence[Path]) -> str:
    """A file as tools take it, `src/a.py:3-9` with the lines that were chosen; what is no file stays as it is."""
    parts = _parts(uri)
    if parts is None:
        return one_line(uri, width=500)
    path, fragment = parts
    lines = _LINES.fullmatch(fragment)
    place = f":{lines[1]}" + (f"-{lines[2]}" if lines[2] else "") if lines else ""
    root = next((root for root in roots if path.is_relative_to(root)), None)
    return one_line(f"{path.relative_to(root) if root is not None else path}{place}", width=500)


def _parts(uri: str) -> tuple[Path, str] | None:
    """The path and the fragment of a file's address; None for another address."""
    try:
        found = urlsplit(uri)
    except ValueError:
        return None
    if found.scheme != "file" or found.netloc not in {"", "localhost"}:
        return None
    return Path(unquote(found.path)), found.fragment
