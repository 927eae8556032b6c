"""Whether the helper itself works: its event loop turns, and the thread that talks to the kernel gets on.

That the API server is away, or the kernel refuses something, is no illness: a restart would mend neither, and take
away the helper that serves the plugin meanwhile. Problems are for `status` and alerts, this is for restarts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event

LOOP_LIMIT = 5.0
"""Seconds within which the event loop must come to an answer; it does nothing that takes long."""
KERNEL_LIMIT = 120.0
"""Seconds that one cycle may take: everything to program on the largest node takes a tenth of it."""


class Health:
    """Judged from any thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
        loop_limit: float = LOOP_LIMIT,
        kernel_limit: float = KERNEL_LIMIT,
    ) -> None:
        """Limits in seconds."""
        self._loop = loop
        self._clock = clock
        self._loop_limit = loop_limit
        self._kernel_limit = kernel_limit
        self._working_since: float | None = None
        self.synced = False
        """The first full comparison has succeeded; so it stays."""

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around what the event loop has the kernel's thread do."""
        self._working_since = self._clock()
        try:
            yield
        finally:
            self._working_since = None

    def kernel_trouble(self) -> str:
        """What is wrong with the kernel's thread; empty: nothing."""
        since = self._working_since
        taken = 0.0 if since is None else self._clock() - since
        return f"one cycle has taken {taken:.0f} s and is not at its end" if taken > self._kernel_limit else ""

    def trouble(self) -> str:
        """The same of all that must move; waits for the event loop, so never ask from there."""
        turned = Event()
        try:
            self._loop.call_soon_threadsafe(turned.set)
        except RuntimeError:
            return "the event loop has ended"
        if not turned.wait(self._loop_limit):
            return f"the event loop has not turned for {self._loop_limit:.0f} s"
        return self.kernel_trouble()

    def unreadiness(self) -> str:
        """Why the helper is not ready; empty: it is."""
        return "" if self.synced else "not yet synced: Services and pods are still being read"
