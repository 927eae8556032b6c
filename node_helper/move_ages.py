"""How long each previous owner of a bucket has been one, by this helper's own clock.

Tables have no times: clocks of nodes differ, and a wrong one would end connections. What is kept is when this helper
first saw an entry. The helper that has run longest forgets it first and writes the table without it; the others, which
would do the same a little later, find it done.
"""

from __future__ import annotations

from node_helper.buckets import BucketTable, with_stacks


class MoveAges:
    """Of one Service's table."""

    def __init__(self, drain_time: float) -> None:
        """`drain_time`: seconds after which a previous owner is forgotten."""
        self._drain_time = drain_time
        self._table: BucketTable | None = None
        self._since: list[tuple[float, ...]] = []
        """By bucket, of each of its previous owners; empty where none has any."""
        self._oldest: float | None = None

    def follow(self, table: BucketTable, now: float) -> None:
        """Takes a table's new entries in; those that it has no more are forgotten."""
        if table is self._table:
            return
        before = self._table
        same_size = before is not None and before.size == table.size
        known = before.stacks() if before is not None and same_size else [()] * table.size
        times = self._since if same_size and self._since else [()] * table.size
        shared: dict[tuple[float, ...], tuple[float, ...]] = {}  # Most buckets have the same times.
        since = []
        for stack, old_stack, old_times in zip(table.stacks(), known, times, strict=True):
            seen = dict(zip(old_stack, old_times, strict=False))  # Times are there only where any were needed.
            found = tuple([seen.get(name, now) for name in stack])
            since.append(shared.setdefault(found, found))
        self._table = table
        self._oldest = min([min(times) for times in shared if times], default=None)
        self._since = since if self._oldest is not None else []

    def due(self) -> float | None:
        """When the next entry is to be forgotten."""
        return None if self._oldest is None else self._oldest + self._drain_time

    def without_old(self, table: BucketTable, now: float) -> BucketTable:
        """The table, which was followed, without the entries whose time is over; the same where there are none."""
        due = self.due()
        if due is None or now < due:
            return table
        stacks = [
            tuple([name for name, time in zip(stack, times, strict=True) if now < time + self._drain_time])
            for stack, times in zip(table.stacks(), self._since, strict=True)
        ]
        return with_stacks(table, stacks)
