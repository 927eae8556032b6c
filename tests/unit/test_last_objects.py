"""The last known objects in the state folder: the same again when they are read, and nothing where they are rubbish."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from node_helper import backends
from node_helper.backends import backend
from node_helper.kernel.router import Router
from node_helper.model import ObjectKey, Problem, Snapshot
from node_helper.settings import Settings
from node_helper.sources import last_objects
from node_helper.sources.kubernetes_objects import read_object, snapshot_of
from node_helper.sources.last_objects import LastObjects, objects
from tests import fake_api
from tests.fake_api import FakeApi
from tests.unit import test_api_writer as writing
from tests.unit.test_incremental import BEGIN, histories

PATIENCE = float(os.environ.get("TEST_PATIENCE", "20"))


def again(snapshot: Snapshot) -> Snapshot:
    read = [read_object(thing) for thing in objects(snapshot)]
    return snapshot_of(thing for thing in read if thing is not None)


@settings(deadline=None, max_examples=100)
@given(histories)
def test_what_is_saved_is_what_is_read(history: list[Callable[[Snapshot], Snapshot]]) -> None:
    """Once it was read: what tests make of nothing may have endpoints that no EndpointSlice could say so."""
    snapshot = BEGIN
    for step in history:
        snapshot = step(snapshot)
    read = again(snapshot)
    assert (read.services, read.pods, read.nodes) == (snapshot.services, snapshot.pods, snapshot.nodes)
    assert again(read) == read


def saved(folder: Path) -> LastObjects:
    last = LastObjects(folder)
    web = writing.service()
    read = [read_object(web), read_object(writing.endpoints("10.244.0.1", "10.244.0.2"))]
    last.offer(snapshot_of(thing for thing in read if thing is not None))
    last.close()
    return last


def test_a_snapshot_is_in_the_file_at_the_end(tmp_path: Path) -> None:
    found = saved(tmp_path).load()
    assert found is not None
    snapshot, age = found
    assert set(snapshot.services) == {writing.WEB} and len(snapshot.endpoints[writing.WEB]) == 2
    assert 0 <= age < 60


@pytest.mark.parametrize("text", [b"", b"rubbish", b"[]", b'{"kind":"List","items":7}', b'{"kind":"Service"}', b"\xff"])
def test_rubbish_is_as_good_as_nothing(tmp_path: Path, text: bytes) -> None:
    last = saved(tmp_path)
    last.path.write_bytes(text)
    assert last.load() is None


def test_what_is_older_than_a_day_sends_nobody_anywhere(tmp_path: Path) -> None:
    last = saved(tmp_path)
    long_ago = time.time() - last_objects.LONGEST_AGE - 60
    os.utime(last.path, (long_ago, long_ago))
    assert last.load() is None


def test_changes_are_saved_while_the_helper_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kill -9` and a power cut do not let it save at the end."""
    monkeypatch.setattr(last_objects, "SAVE_AFTER", 0.05)
    last = LastObjects(tmp_path)
    last.offer(BEGIN)
    writing.wait(lambda: last.load() is not None, "the file")


def test_what_could_not_be_saved_is_saved_once_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nothing changes meanwhile: a disk was full for a while."""
    tries: list[Snapshot] = []

    def counted(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
        tries.append(snapshot)
        return objects(snapshot)

    monkeypatch.setattr(last_objects, "objects", counted)
    monkeypatch.setattr(last_objects, "SAVE_AFTER", 0.05)
    in_the_way = tmp_path / ".service-tunnel" / ".objects.json.new"
    in_the_way.mkdir(parents=True)
    last = LastObjects(tmp_path)
    last.offer(BEGIN)
    writing.wait(lambda: len(tries) >= 2, "a second try")
    in_the_way.rmdir()
    writing.wait(lambda: last.load() is not None, "the file")
    last.close()


def test_objects_that_stay_the_same_for_days_do_not_grow_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is when they were known to be so, and not when they became so."""
    monkeypatch.setattr(last_objects, "SAVE_AFTER", 0.05)
    monkeypatch.setattr(last_objects, "REFRESH", 0.0)
    last = LastObjects(tmp_path)
    last.offer(BEGIN)
    writing.wait(lambda: last.load() is not None, "the file")
    long_ago = time.time() - last_objects.LONGEST_AGE - 60
    os.utime(last.path, (long_ago, long_ago))
    assert last.load() is None
    last.offer(BEGIN)
    writing.wait(lambda: last.load() is not None, "a file as new as what it says")
    last.close()


def test_what_is_offered_while_the_server_is_away_is_no_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same objects with another problem; and what was offered just before is saved all the same."""
    away = Problem("Source", ObjectKey("", "kubernetes"), "ApiUnreachable", "it does not answer")
    monkeypatch.setattr(last_objects, "REFRESH", 0.0)
    last = LastObjects(tmp_path)
    last.offer(BEGIN)
    last.offer(replace(BEGIN, problems=(away,)))
    last.close()
    assert last.load() is not None
    long_ago = time.time() - last_objects.LONGEST_AGE - 60
    os.utime(last.path, (long_ago, long_ago))
    successor = LastObjects(tmp_path)
    successor.offer(replace(BEGIN, problems=(away,)))
    successor.close()
    assert successor.load() is None


@pytest.mark.parametrize("forwards", [False, True])
def test_a_fresh_node_begins_with_them_when_the_api_server_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forwards: bool
) -> None:
    """A node whose kernel has what a helper before put there leaves it at that."""
    saved(tmp_path)
    monkeypatch.setattr(backends, "FROM_STATE_AFTER", 0.1)
    monkeypatch.setattr(Router, "stands", lambda _: forwards)
    with FakeApi() as server:
        server.always["Service"] = fake_api.refuse(500)
        server.put(writing.service("other", 2))
        made = backend(Settings("n1", kubeconfig=server.kubeconfig(tmp_path), state_dir=tmp_path))
        assert isinstance(made, backends._Kubernetes)
        try:
            writing.wait(lambda: not made._patience.is_alive(), "patience lost")
            kept = made.read()
            if forwards:
                assert kept is None
            else:
                assert kept is not None and set(kept.services) == {writing.WEB}
                (problem,) = kept.problems
                assert problem.reason == "ApiUnreachable" and "in use" in problem.message
            server.always.clear()
            writing.wait(lambda: "other" in {key.name for key in (made.read() or Snapshot()).services}, "what is so")
            assert writing.WEB not in (made.read() or Snapshot()).services
            # What is read while the trouble is not over yet is not kept.
            writing.wait(lambda: (now := made.read()) is not None and not now.problems, "no trouble any more")
        finally:
            server.end_watches()
            made.close()
        assert "other" in (tmp_path / ".service-tunnel" / "objects.json").read_text()
