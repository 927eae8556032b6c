"""The daemon's cycle: what fails in it is told, counted and tried again, whatever it is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_helper import daemon
from node_helper.backends import Backend
from node_helper.bucket_store import FolderBucketStore
from node_helper.daemon import Daemon
from node_helper.model import Problem, Snapshot
from node_helper.settings import Settings

FAULTS = [ZeroDivisionError("division by zero"), KeyError("an object as nobody thought of"), OSError(5, "no link")]


class Still(Backend):
    """A source in which nothing ever changes."""

    name = "still"

    def __init__(self, folder: Path) -> None:
        self.store = FolderBucketStore(folder)
        self._notice = os.eventfd(0)

    def fileno(self) -> int:
        return self._notice

    def drain(self) -> bool:
        return False

    def read(self) -> Snapshot:
        return Snapshot()

    def tell(self, problems: Iterable[Problem], snapshot: Snapshot) -> None:
        pass

    def close(self) -> None:
        os.close(self._notice)


class Silent:
    """News that never come."""

    def __init__(self) -> None:
        self._notice = os.eventfd(0)

    def fileno(self) -> int:
        return self._notice


class Failing:
    """Stands for the reconciler."""

    def __init__(self, fault: Exception) -> None:
        self._fault = fault
        self.news = Silent()
        self.full: list[bool] = []

    def reconcile(self, _: Snapshot, full: bool, __: frozenset[str]) -> Any:
        self.full.append(full)
        raise self._fault

    def close(self) -> None:
        pass


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_cycle_that_fails_is_told_once_counted_and_tried_again(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "_RETRY", 0.01)
    monkeypatch.setattr(daemon, "Claim", lambda _: nullcontext())  # of this machine, where others test
    settings = Settings(
        node="node1",
        manifests=tmp_path,
        socket=tmp_path / "helper.sock",
        run_dir=tmp_path / "run",
        state_dir=tmp_path / "state",
    )
    helper = Daemon(settings, Still(tmp_path / "tables"))
    failing = Failing(fault)
    monkeypatch.setattr(daemon, "Reconciler", lambda *_: failing)

    async def until_it_has_failed_often() -> None:
        async with asyncio.timeout(20):
            running = asyncio.create_task(helper.run())
            while helper._metrics.sync_failures._value.get() < 3:
                assert not running.done(), running
                await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    with capture_logs() as logs:
        asyncio.run(until_it_has_failed_often())
    told = [entry for entry in logs if entry["log_level"] == "error"]
    assert len(told) == 1, logs
    assert "trying again" in told[0]["event"]
    assert (told[0].get("exc_info") is None) == isinstance(fault, OSError), "a fault of ours comes with its traceback"
    assert failing.full[:3] == [True, True, True]
