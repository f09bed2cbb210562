"""Keys and tokens by the shapes their issuers give them, so that none is trained into a model."""

from collections.abc import Iterator

from punie.redaction import TOKEN_KINDS as KINDS
from punie.redaction import tokens

__all__ = ["KINDS", "found"]


def found(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, its first characters) of each secret in a text; never the whole of one."""
    for kind, value in tokens(text):
        yield kind, value[:8] + "..."
