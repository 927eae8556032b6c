"""What a run says while it works: on a terminal a line that is replaced, elsewhere a line for each benchmark."""

from __future__ import annotations

import sys
from collections.abc import Callable

Tell = Callable[[str], None]
"""Says what is being done just now."""


def tell(doing: str) -> None:
    """On a terminal only: a log has no use for it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{doing}", end="", file=sys.stderr, flush=True)


def done(line: str) -> None:
    """What is to stay."""
    tell("")
    print(line, flush=True)
