"""What an ingress helper does about bucket tables, alone in a thread: from its source to what it would program."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

from node_helper.api import Api
from node_helper.api_writer import AnnotationBucketStore
from node_helper.bucket_store import FolderBucketStore
from node_helper.buckets import BucketTable
from node_helper.model import ObjectKey, Problem
from node_helper.services import tunnel_services
from node_helper.settings import INGRESS
from node_helper.sources.kubernetes import KubernetesSource
from node_helper.tables import TableKeeper
from node_helper.vips import VipRules

_LONG = 3600.0


class Keeper:
    """Looks when its source has news and when a look said so, never otherwise: what is forgotten stays forgotten."""

    def __init__(self, connect: Callable[[], Api], state: Path, size: int) -> None:
        """Threads stay in the network namespace in which this is called."""
        api = connect()
        state.mkdir(exist_ok=True)
        self.source = KubernetesSource(api, [INGRESS], "n1")
        self.store = AnnotationBucketStore(api, self.source)
        self._tables = TableKeeper(self.store, FolderBucketStore(state), size)
        self.tables: dict[ObjectKey, BucketTable] = {}
        self.problems: list[Problem] = []
        self.ever: set[str] = set()
        """The reasons of all problems so far."""
        self.stored = 0
        """Tables of this one that were stored, as the metric counts them."""
        self.looks = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def written(self) -> int:
        return self.store.writer.written

    @property
    def refused(self) -> int:
        return self.store.writer.refused

    def _run(self) -> None:
        again = time.monotonic() + _LONG
        while not self._end.is_set():
            select.select([self.source], [], [], max(0.0, min(again - time.monotonic(), 0.1)))
            if not self.source.drain() and time.monotonic() < again:
                continue
            snapshot = self.source.read()
            if snapshot is None:
                continue
            found = self._tables.look(tunnel_services(snapshot, VipRules(), "vxlan-gpe").services, snapshot)
            self.tables = found.tables
            self.problems = found.problems
            self.ever |= {problem.reason for problem in found.problems}
            self.stored += found.written
            self.looks += 1
            again = time.monotonic() + (_LONG if found.again_in is None else found.again_in)

    def reasons(self) -> set[str]:
        return {problem.reason for problem in self.problems}

    def close(self) -> None:
        """Once is enough, more does no harm."""
        if self._end.is_set():
            return
        self._end.set()
        self._thread.join()
        self.source.close()
        self.store.close()
