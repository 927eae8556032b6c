"""The stored bucket tables: read, repaired, and written anew by compare-and-swap.

Every ingress helper computes the same next table from the stored one and the usable endpoints, so it does
not matter who writes it; a lost race is a table that is already there. Until a table with newcomers is
stored nobody sends them traffic (`buckets.effective`), so nodes do not diverge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

from node_helper.bucket_store import BucketStore, BucketStoreError, FolderBucketStore
from node_helper.bucket_text import BucketTableError, NewerTable, decode, encode
from node_helper.buckets import BucketTable, rebalance, resized
from node_helper.lapses import Lapses
from node_helper.model import ObjectKey, Problem, Snapshot
from node_helper.move_ages import MoveAges
from node_helper.plan.ingress import node_local
from node_helper.services import TUNNEL_BUCKETS, TunnelService

WRITE_INTERVAL = 1.0
"""Seconds between two writes of one Service's table."""
OWN_TABLE_AFTER = 2.0
"""Seconds without a stored table after which a node goes on with its own: fresh ones are the same everywhere."""
_ATTEMPTS = 5


@dataclass(slots=True)
class TableRound:
    """Result of one look at all Services."""

    tables: dict[ObjectKey, BucketTable] = field(default_factory=dict)
    """Of as many buckets as this node has."""
    problems: list[Problem] = field(default_factory=list)
    again_in: float | None = None
    """Seconds until something that has to wait may be done."""
    resting: dict[ObjectKey, TunnelService] = field(default_factory=dict)
    """Services of which some usable endpoints get no traffic yet (`lapses`), without these."""
    written: int = 0
    """Tables of this helper that were stored since the last look."""

    def wait(self, seconds: float) -> None:
        self.again_in = seconds if self.again_in is None else min(seconds, self.again_in)


@dataclass(frozen=True, slots=True)
class _Settled:
    """A Service whose table was just what was stored: the same again needs no second look."""

    service: TunnelService
    text: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A table that the store was asked to keep, and has not told of yet."""

    service: TunnelService
    text: str | None
    """What was stored then."""
    wanted: BucketTable
    since: float
    """When any table of the Service was asked for first."""


class TableReader:
    """The stored tables as they are, for a helper that writes none: pods are to know what ingress nodes send."""

    def __init__(self, store: BucketStore) -> None:
        self._store = store
        self._known: dict[ObjectKey, tuple[str, BucketTable]] = {}

    def read(self, services: Iterable[TunnelService]) -> dict[ObjectKey, BucketTable]:
        """The very object of the last time where the text is the same; the last good one where there is none."""
        before, self._known = self._known, {}
        for service in services:
            known = before.get(service.key)
            if known is not None and known[1].uid != service.uid:
                known = None
            # What is wrong with the store or a table is told by the helpers that write.
            with suppress(BucketStoreError, BucketTableError):
                text = self._store.read(service.key)
                if text is not None and (known is None or known[0] != text):
                    known = text, decode(text, service.uid)
            if known is not None:
                self._known[service.key] = known
        return {key: table for key, (_, table) in self._known.items()}


class TableKeeper:
    """Keeps this node's view of the stored tables.

    A table may have another number of buckets than this node. Where it has fewer, each of them is split here, which
    moves no flow, and the next table is stored with more. Where it has more, they are merged here, a problem says so,
    and the stored number stays: it only grows, so helpers that differ do not write over each other.
    """

    def __init__(
        self,
        store: BucketStore,
        local: FolderBucketStore,
        size: int,
        clock: Callable[[], float] = time.monotonic,
        drain_time: float = 3600.0,
    ) -> None:
        """`drain_time`: seconds after which a bucket's previous owner is forgotten."""
        self._store = store
        self._local = local
        self._size = size
        self._clock = clock
        self._last: dict[ObjectKey, BucketTable] = {}
        """As stored, or as it would be."""
        self._applied: dict[ObjectKey, BucketTable] = {}
        """The same, with this node's number of buckets."""
        self._settled: dict[ObjectKey, _Settled] = {}
        self._asked: dict[ObjectKey, _Asked] = {}
        self._seen: dict[ObjectKey, str] = {}
        """The last good table that was stored, by whomever."""
        self._written_at: dict[ObjectKey, float] = {}
        """When it came there."""
        self._copies: set[ObjectKey] | None = None
        """What the state folder has tables of; None before it was looked at."""
        self._uncopied: dict[ObjectKey, BucketTable] = {}
        """What should be there, and could not be written."""
        self._drain_time = drain_time
        self._ages: dict[ObjectKey, MoveAges] = {}
        self._lapses: dict[ObjectKey, Lapses] = {}
        self._rested: dict[ObjectKey, tuple[TunnelService, TunnelService]] = {}
        """A Service and what was made of it, which stays the same object."""

    def look(self, services: Iterable[TunnelService], snapshot: Snapshot) -> TableRound:
        """The table of each Service, stored anew where the endpoints changed and it is time to.

        Where neither the Service nor the stored text changed the table is the very object of the last look.
        """
        result = TableRound()
        seen = set()
        now = self._clock()
        for service in services:
            key = service.key
            seen.add(key)
            settled = self._settled.get(key)
            due = self._ages[key].due() if key in self._ages else None
            same = settled is not None and settled.service is service and self._text(service) == settled.text
            if settled is not None and same and (due is None or now < due):
                result.tables[key] = self._applied[key]
                result.problems += settled.problems
                if due is not None:
                    result.wait(due - now)
                continue
            annotation = snapshot.services[key].annotations.get(TUNNEL_BUCKETS)
            self._settled.pop(key, None)
            self._lapses.setdefault(key, Lapses()).follow(self._last.get(key), service.usable)
            table = self._one(service, annotation, result)
            if table is not None:
                result.tables[key] = self._apply(service, table, result)
                ages = self._ages_of(key)
                ages.follow(self._last[key], now)
                if (due := ages.due()) is not None:
                    result.wait(max(0.0, due - now))
                self._rest(service, table, result, now)
        for key in self._last.keys() - seen:
            del self._last[key], self._applied[key]
            self._ages.pop(key, None)
            self._lapses.pop(key, None)
            self._rested.pop(key, None)
            self._written_at.pop(key, None)
            self._settled.pop(key, None)
            self._seen.pop(key, None)
            self._uncopied.pop(key, None)
        for key in self._asked.keys() - seen:
            del self._asked[key]
            self._store.withdraw(key)
        for key, table in tuple(self._uncopied.items()):
            self._keep_local(key, table)
        self._remove_copies(snapshot)
        result.written += self._store.take_stored()
        return result

    def _rest(self, service: TunnelService, table: BucketTable, result: TableRound, now: float) -> None:
        lapses = self._lapses[service.key]
        lapses.follow(table, service.usable)
        names = lapses.resting(table, service.usable, now)
        if names:  # another look is to come: the next table tells that they are back
            self._settled.pop(service.key, None)
            result.wait(lapses.left(now))
        # Of a single node's endpoints the only one may rest, and with it the VIP: these take the loss.
        if not names or node_local(service):
            self._rested.pop(service.key, None)
            return
        rested = replace(service, usable=tuple([name for name in service.usable if name not in names]))
        known = self._rested.get(service.key)
        if known is None or known[0] is not service or known[1] != rested:
            self._rested[service.key] = service, rested
        result.resting[service.key] = self._rested[service.key][1]

    def _apply(self, service: TunnelService, table: BucketTable, result: TableRound) -> BucketTable:
        key = service.key
        if table != self._last.get(key):
            self._keep_local(key, table)
            self._last[key], self._applied[key] = table, resized(table, self._size)
        problems = tuple(self._faults(service, table))
        result.problems += problems
        if problems and (settled := self._settled.get(key)) is not None:
            self._settled[key] = replace(settled, problems=problems)
        return self._applied[key]

    def _faults(self, service: TunnelService, table: BucketTable) -> Iterator[Problem]:
        """What is wrong for as long as neither table nor Service change."""
        if table.size > self._size:
            message = (
                f"it has {table.size} buckets, this node has {self._size} (--buckets) and sends flows elsewhere than "
                "other ingress nodes; give all helpers the same number"
            )
            yield _problem(service, "BucketCountDiffers", message)
        if len(service.usable) > self._size:
            excess = len(service.usable) - self._size
            message = (
                f"{len(service.usable)} endpoints share {self._size} buckets, so {excess} get no traffic; "
                "give the helpers more --buckets, or the Service fewer pods"
            )
            yield _problem(service, "TooFewBuckets", message)

    def _ages_of(self, key: ObjectKey) -> MoveAges:
        return self._ages.setdefault(key, MoveAges(self._drain_time))

    def _text(self, service: TunnelService) -> str | None:
        """What is stored; None also where the store cannot be read, which `_one` will find out and tell."""
        try:
            return self._store.read(service.key)
        except BucketStoreError:
            return None

    def _one(self, service: TunnelService, annotation: str | None, result: TableRound) -> BucketTable | None:
        for _ in range(_ATTEMPTS):
            try:
                text = self._store.read(service.key)
            except BucketStoreError as error:
                result.problems.append(_problem(service, "NoBucketStore", f"{error}; going on with the last table"))
                return self._without_store(service, annotation)
            try:
                found = self._decode(service, text, result)
            except NewerTable as error:
                message = f"{error}; it is left as it is, and this node goes on with the last table that it knew"
                result.problems.append(_problem(service, "NewerBucketTable", message))
                return self._without_store(service, annotation)
            now = self._clock()
            if found is not None and text is not None and self._seen.get(service.key) != text:
                # Another's write counts as ours: all helpers together write once a second.
                if service.key in self._seen:
                    self._written_at[service.key] = now
                self._seen[service.key] = text
            stored = self._without_old(service, found or self._fallback(service, annotation))
            asked = self._asked.get(service.key)
            if asked is not None and asked.service is service and asked.text == text:
                wanted: BucketTable | None = asked.wanted
                if self._store.under_way(service.key):
                    return self._meanwhile(asked, found, stored, result)
            else:
                wanted = self._next(service, stored, found)
            if wanted is None or wanted == found:
                if self._asked.pop(service.key, None) is not None:
                    self._store.withdraw(service.key)
                if text is not None and wanted is not None:
                    self._settled[service.key] = _Settled(service, text, ())
                return wanted
            wait = self._written_at.get(service.key, now - WRITE_INTERVAL) + WRITE_INTERVAL - now
            if wait > 0 and stored is not None:
                result.wait(wait)
                return stored
            try:
                stored_now = self._store.write(service.key, encode(wanted), expected=text)
            except BucketStoreError as error:
                result.problems.append(_problem(service, "NoBucketStore", f"{error}; going on with an own table"))
                return self._without_store(service, annotation)
            if stored_now:
                self._written_at[service.key] = now
                result.written += 1
                self._seen[service.key] = encode(wanted)
                self._settled[service.key] = _Settled(service, encode(wanted), ())
                return wanted
            if stored_now is None:
                since = asked.since if asked is not None else now
                self._asked[service.key] = asked = _Asked(service, text, wanted, since)
                return self._meanwhile(asked, found, stored, result)
        return self._without_store(service, annotation)

    def _meanwhile(
        self, asked: _Asked, found: BucketTable | None, stored: BucketTable | None, result: TableRound
    ) -> BucketTable | None:
        """What counts while a table is on its way: the one that others have, too, for as long as there is one."""
        trouble = self._store.trouble(asked.service.key)
        late = asked.since + OWN_TABLE_AFTER - self._clock()
        if found is not None:
            if trouble:
                message = f"{trouble}; going on with the stored one, endpoints that it lacks get no traffic"
                result.problems.append(_problem(asked.service, "NoBucketStore", message))
            return found
        if not trouble and late > 0:
            result.wait(late)
            return stored
        why = trouble or f"it could not be stored in {OWN_TABLE_AFTER:.0f} seconds"
        result.problems.append(_problem(asked.service, "NoBucketStore", f"{why}; going on with an own table"))
        return asked.wanted

    def _next(
        self, service: TunnelService, table: BucketTable | None, found: BucketTable | None = None
    ) -> BucketTable | None:
        """The table that should be stored; the number of buckets never shrinks while one is stored."""
        if not service.usable:
            return table
        size = self._size if found is None else max(self._size, found.size)
        alive = {str(endpoint.address) for endpoint in service.endpoints}
        lapses = self._lapses.get(service.key)
        untold = lapses.untold if lapses is not None else frozenset()
        usable = tuple([name for name in service.usable if name not in untold]) or service.usable
        return rebalance(table, service.uid, _members(service, table), size, usable, alive)

    def _without_store(self, service: TunnelService, annotation: str | None) -> BucketTable | None:
        """Nothing can be stored: what this node had, kept up for itself; a fresh table is everywhere the same."""
        table = self._without_old(service, self._fallback(service, annotation))
        return self._next(service, table, table)

    def _without_old(self, service: TunnelService, table: BucketTable | None) -> BucketTable | None:
        """Without previous owners whose time is over."""
        if table is None:
            return None
        ages, now = self._ages_of(service.key), self._clock()
        ages.follow(table, now)
        return ages.without_old(table, now)

    def _fallback(self, service: TunnelService, annotation: str | None) -> BucketTable | None:
        """The last table applied here, in memory or in the state folder, or the one in the Service's own YAML."""
        if service.key in self._last and self._last[service.key].uid == service.uid:
            return self._last[service.key]
        texts = [annotation]
        try:
            texts.insert(0, self._local.read(service.key))
        except BucketStoreError:
            pass  # A state folder that cannot be read is as good as an empty one.
        for text in texts:
            if text is not None:
                try:
                    return decode(text, service.uid)
                except BucketTableError:
                    continue  # Told where the stored table is read; here it is only a hint.
        return None

    def _keep_local(self, key: ObjectKey, table: BucketTable) -> None:
        text = encode(table)
        try:
            kept = self._local.read(key)
            if kept != text:
                self._local.write(key, text, expected=kept)
        except BucketStoreError:
            # It serves a start without the store only, so nobody is told; the next look tries again.
            self._uncopied[key] = table
            return
        self._uncopied.pop(key, None)
        if self._copies is not None:
            self._copies.add(key)

    def _remove_copies(self, snapshot: Snapshot) -> None:
        """Of Services that are no more. Not while objects cannot be read: theirs may be among those."""
        if snapshot.problems:
            return
        try:
            if self._copies is None:
                self._copies = set(self._local.keys())
            for key in self._copies - snapshot.services.keys():
                self._local.remove(key)
                self._copies.remove(key)
        except BucketStoreError:
            return  # As in `_keep_local`: another look will come.

    @staticmethod
    def _decode(service: TunnelService, text: str | None, result: TableRound) -> BucketTable | None:
        """The stored table, or None where it has to be replaced; raises NewerTable for what must not be."""
        if text is None:
            return None
        try:
            return decode(text, service.uid)
        except NewerTable:
            raise
        except BucketTableError as error:
            result.problems.append(_problem(service, "UnusableBucketTable", f"{error}; it is replaced"))
            return None


def _members(service: TunnelService, table: BucketTable | None) -> set[str]:
    """The endpoints that the next table has.

    Newcomers once they are usable. One that the table has already stays while it is not ready but there:
    `effective` lends its buckets to others meanwhile, and when it is back it finds its connections again.
    """
    staying = {str(endpoint.address) for endpoint in service.endpoints if not endpoint.terminating}
    return set(service.usable) | (staying.intersection(table.endpoints) if table is not None else set())


def _problem(service: TunnelService, reason: str, message: str) -> Problem:
    return Problem("Service", service.key, reason, f"bucket table of Service {service.key}: {message}")
