"""Endpoints that were away for a moment which no stored table tells of.

An endpoint that ceases to be usable loses its buckets at once, on each node by itself; that it was away, and who had
its buckets meanwhile, is in the table that is stored next, a second later perhaps. Where it is back before that, the
table would never tell, and connections that began meanwhile would be nobody's. So it rests until a stored table has
told of it, and another one that it is back: everybody takes both steps, and knows the previous owners.
"""

from __future__ import annotations

from node_helper.buckets import BucketTable

LIMIT = 3.0
"""Seconds: an endpoint does not rest for longer, whatever becomes of the table."""


class Lapses:
    """Those of one Service."""

    def __init__(self) -> None:
        self._usable: frozenset[str] = frozenset()
        """When last looked at: who goes from these had buckets, as this node saw it."""
        self._untold: frozenset[str] = frozenset()
        self._since: float | None = None
        """When the present rest began."""
        self._over = False
        """Whether it took too long: nobody rests until all is told."""

    def follow(self, table: BucketTable | None, usable: tuple[str, ...]) -> None:
        """Takes note of who is away now, and of what a table tells."""
        went = self._usable.difference(usable)
        self._usable = frozenset(usable)
        if table is not None:
            self._untold = (self._untold | went).intersection(table.endpoints).difference(table.away)

    @property
    def untold(self) -> frozenset[str]:
        """Who is to be away in the next table, also if usable by now."""
        return frozenset() if self._over else self._untold

    def resting(self, table: BucketTable, usable: tuple[str, ...], now: float) -> frozenset[str]:
        """Who of the usable gets no traffic yet. Never all of them."""
        back = (self._untold | frozenset(table.away)).intersection(usable)
        if not back:
            self._since, self._over = None, False
            return frozenset()
        if self._since is None:
            self._since = now
        if self._over or now - self._since >= LIMIT:
            self._untold, self._over = frozenset(), True
            return frozenset()
        return back if len(back) < len(usable) else frozenset()

    def left(self, now: float) -> float:
        """Seconds for which anybody may still rest."""
        return LIMIT if self._since is None else max(0.0, self._since + LIMIT - now)
