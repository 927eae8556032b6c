"""The stored bucket tables: read, repaired, and written anew by compare-and-swap.

Every ingress helper computes the same next table from the stored one and the usable endpoints, so it does
not matter who writes it; a lost race is a table that is already there. Until a table with newcomers is
stored nobody sends them traffic (`buckets.effective`), so nodes do not diverge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from node_helper.bucket_store import BucketStore, BucketStoreError, FolderBucketStore
from node_helper.bucket_text import BucketTableError, NewerTable, decode, encode
from node_helper.buckets import BucketTable, rebalance
from node_helper.model import ObjectKey, Problem, Snapshot
from node_helper.services import TUNNEL_BUCKETS, TunnelService

WRITE_INTERVAL = 1.0
"""Seconds between two writes of one Service's table."""
_ATTEMPTS = 5


@dataclass(slots=True)
class TableRound:
    """Result of one look at all Services."""

    tables: dict[ObjectKey, BucketTable] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    again_in: float | None = None
    """Seconds until a write that has to wait may be made."""
    written: int = 0


class TableKeeper:
    """Keeps this node's view of the stored tables."""

    def __init__(
        self,
        store: BucketStore,
        local: FolderBucketStore,
        size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._local = local
        self._size = size
        self._clock = clock
        self._last: dict[ObjectKey, BucketTable] = {}
        self._settled: dict[ObjectKey, tuple[TunnelService, str]] = {}
        """Services whose table was just what was stored, and the text of that: the same again needs no second look."""
        self._written_at: dict[ObjectKey, float] = {}

    def look(self, services: Iterable[TunnelService], snapshot: Snapshot) -> TableRound:
        """The table of each Service, stored anew where the endpoints changed and it is time to.

        Where neither the Service nor the stored text changed the table is the very object of the last look.
        """
        result = TableRound()
        seen = set()
        for service in services:
            seen.add(service.key)
            settled = self._settled.get(service.key)
            if settled is not None and settled[0] is service and self._text(service) == settled[1]:
                result.tables[service.key] = self._last[service.key]
                continue
            annotation = snapshot.services[service.key].annotations.get(TUNNEL_BUCKETS)
            self._settled.pop(service.key, None)
            table = self._one(service, annotation, result)
            if table is not None:
                if table != self._last.get(service.key):
                    self._keep_local(service, table)
                    self._last[service.key] = table
                result.tables[service.key] = self._last[service.key]
        for key in self._last.keys() - seen:
            del self._last[key]
            self._written_at.pop(key, None)
            self._settled.pop(key, None)
        return result

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
            stored = found or self._fallback(service, annotation)
            wanted = self._next(service, stored)
            if wanted is None or wanted == found:
                if text is not None and wanted is not None:
                    self._settled[service.key] = service, text
                return wanted
            now = self._clock()
            wait = self._written_at.get(service.key, now - WRITE_INTERVAL) + WRITE_INTERVAL - now
            if wait > 0 and stored is not None:
                result.again_in = wait if result.again_in is None else min(wait, result.again_in)
                return stored
            try:
                stored_now = self._store.write(service.key, encode(wanted), expected=text)
                if stored_now is not False:
                    self._written_at[service.key] = now
                    result.written += 1
                    if stored_now:
                        self._settled[service.key] = service, encode(wanted)
                    # What is on its way counts once it is there: nobody sends a flow by a table that others lack.
                    return wanted if stored_now else stored
            except BucketStoreError as error:
                result.problems.append(_problem(service, "NoBucketStore", f"{error}; going on with an own table"))
                return self._without_store(service, annotation)
        return self._without_store(service, annotation)

    def _without_store(self, service: TunnelService, annotation: str | None) -> BucketTable | None:
        """Nothing can be stored: what this node had, kept up for itself; a fresh table is everywhere the same."""
        return self._next(service, self._fallback(service, annotation))

    def _next(self, service: TunnelService, table: BucketTable | None) -> BucketTable | None:
        """The table to store after this one."""
        if not service.usable:
            return table
        members = _members(service, table)
        alive = {str(endpoint.address) for endpoint in service.endpoints}
        return rebalance(table, service.uid, members, self._size, service.usable, alive)

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

    def _keep_local(self, service: TunnelService, table: BucketTable) -> None:
        text = encode(table)
        try:
            kept = self._local.read(service.key)
            if kept != text:
                self._local.write(service.key, text, expected=kept)
        except BucketStoreError:
            return  # The copy serves a start without the store only; the stored table is the one that counts.

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
