"""Bucket tables in a folder: compare-and-swap among helpers, and folders that cannot be used."""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from node_helper import bucket_store
from node_helper.bucket_store import BucketStoreError, FolderBucketStore
from node_helper.bucket_text import ForeignTable, MalformedTable, decode, encode
from node_helper.buckets import fresh
from node_helper.model import ObjectKey

WEB = ObjectKey("shop", "web")


def test_what_was_written_is_read_by_all(tmp_path: Path) -> None:
    assert FolderBucketStore(tmp_path).read(WEB) is None
    assert FolderBucketStore(tmp_path).write(WEB, "one", None)
    assert FolderBucketStore(tmp_path).read(WEB) == "one"
    assert (tmp_path / ".service-tunnel" / "buckets" / "shop.web").read_text() == "one"


def test_a_writer_that_expected_something_else_changes_nothing(tmp_path: Path) -> None:
    store = FolderBucketStore(tmp_path)
    assert not store.write(WEB, "one", "zero")
    assert store.write(WEB, "one", None)
    assert not store.write(WEB, "two", None)
    assert not store.write(WEB, "two", "zero")
    assert store.read(WEB) == "one"
    assert store.write(WEB, "two", "one")
    assert store.read(WEB) == "two"


def test_of_writers_at_the_same_time_one_wins_each_round(tmp_path: Path) -> None:
    store = FolderBucketStore(tmp_path)

    def count_up(_: int) -> int:
        wins = 0
        while wins < 25:
            seen = store.read(WEB)
            wins += store.write(WEB, str(int(seen or 0) + 1), seen)
        return wins

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(count_up, range(4))) == 100
    assert store.read(WEB) == "100"


def test_a_table_can_be_removed_twice(tmp_path: Path) -> None:
    store = FolderBucketStore(tmp_path)
    store.remove(WEB)
    store.write(WEB, "one", None)
    store.remove(WEB)
    store.remove(WEB)
    assert store.read(WEB) is None


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / ".service-tunnel").write_text("in the way")
    store = FolderBucketStore(tmp_path)
    assert store.read(WEB) is None
    with pytest.raises(BucketStoreError, match=r"shop\.web cannot be written"):
        store.write(WEB, "one", None)
    store.remove(WEB)


def test_a_table_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / ".service-tunnel" / "buckets" / "shop.web").mkdir(parents=True)
    with pytest.raises(BucketStoreError, match="cannot be read"):
        FolderBucketStore(tmp_path).read(WEB)


def test_a_lock_that_is_never_given_back_does_not_hang_the_helper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderBucketStore(tmp_path)
    store.write(WEB, "one", None)
    monkeypatch.setattr(bucket_store, "_LOCK_WAIT", 0.02)
    with (tmp_path / ".service-tunnel" / "buckets" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BucketStoreError, match="held by another"):
            store.write(WEB, "two", "one")
    assert store.write(WEB, "two", "one")


@pytest.mark.parametrize("key", [ObjectKey("..", "x"), ObjectKey("a", "../x"), ObjectKey("a", "")])
def test_a_key_never_leads_out_of_the_folder(tmp_path: Path, key: ObjectKey) -> None:
    with pytest.raises(BucketStoreError, match="no file can be named"):
        FolderBucketStore(tmp_path).write(key, "x", None)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    store = FolderBucketStore(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        store.write(WEB, str(number), store.read(WEB))
        store.write(WEB, "lost", "race")
    assert len(os.listdir("/proc/self/fd")) == before
    assert sorted(os.listdir(tmp_path / ".service-tunnel" / "buckets")) == [".lock", "shop.web"]


def test_rubbish_and_a_copied_services_table_are_seen_by_their_reader(tmp_path: Path) -> None:
    store = FolderBucketStore(tmp_path)
    table = fresh("uid of another", ["10.0.0.1"], 16)
    store.write(WEB, encode(table), None)
    with pytest.raises(ForeignTable):
        decode(store.read(WEB) or "", "own uid")
    (tmp_path / ".service-tunnel" / "buckets" / "shop.web").write_bytes(b"\xff" * 300000)
    with pytest.raises(MalformedTable):
        decode(store.read(WEB) or "", "own uid")
