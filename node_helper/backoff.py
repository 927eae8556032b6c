"""How long to wait before the next try of something that failed: longer each time, up to a limit, and never exactly.

Jitter keeps the helpers of a cluster, to which the same thing happened at the same moment, from coming back together.
"""

from __future__ import annotations

import random


class Backoff:
    """Pauses that double from `first` to `longest` seconds, each shortened by chance to no less than half."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def pause(self) -> float:
        """Seconds to wait now; the next pause is longer. Never fails, after however many failures."""
        now = self._next
        self._next = min(2 * now, self._longest)
        return now * random.uniform(0.5, 1.0)  # noqa: S311 - spreads requests

    def reset(self) -> None:
        self._next = self._first
