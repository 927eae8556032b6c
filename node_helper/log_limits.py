"""Keeps the log readable where one thing happens again and again: a few lines at once, then one a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

BURST = 4
"""Lines about one subject that are written at once."""
PAUSE = 60.0
"""Seconds until it may have one more."""
_SUBJECTS = 4096
"""More than this are looked through for those that have been quiet."""


class LineLimit:
    """A token bucket per subject."""

    def __init__(self, burst: int = BURST, pause: float = PAUSE, clock: Callable[[], float] = time.monotonic) -> None:
        """`burst`: lines at once; `pause`: seconds for each line more."""
        self._burst = burst
        self._pause = pause
        self._clock = clock
        self._spent: dict[Hashable, float] = {}
        """By subject: the time at which its bucket will be full again."""

    def allows(self, subject: Hashable) -> bool:
        """Whether a line about this may be written now; if so, it counts as written."""
        now = self._clock()
        full_at = max(self._spent.get(subject, now), now)
        if full_at - now > (self._burst - 1) * self._pause:
            return False
        if len(self._spent) > _SUBJECTS:
            self._spent = {other: at for other, at in self._spent.items() if at > now}
        self._spent[subject] = full_at + self._pause
        return True
