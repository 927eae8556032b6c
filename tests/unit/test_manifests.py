"""The folder of manifests: what it reads, what it keeps while something is broken, and what it notices."""

from __future__ import annotations

import json
import os
import select
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_helper.model import ObjectKey, Snapshot
from node_helper.sources import manifests
from node_helper.sources.documents import DocumentError, documents
from node_helper.sources.manifests import ManifestFolder

WITHIN = 5.0
"""Seconds in which a change must be noticed."""


def service(name: str = "web", tunnel: str = "198.51.100.7", port: object = 80) -> str:
    return (
        f"apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n"
        f"  annotations:\n    cmd.nu/tunnel: {tunnel}\nspec:\n  ports:\n  - port: {port}\n"
    )


def key(name: str) -> ObjectKey:
    return ObjectKey("default", name)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "manifests"
    path.mkdir()
    return path


@pytest.fixture
def folder(directory: Path) -> Iterator[ManifestFolder]:
    followed = ManifestFolder(directory)
    yield followed
    followed.close()


def names(snapshot: Snapshot) -> list[str]:
    return sorted(found.name for found in snapshot.services)


def vip(snapshot: Snapshot, name: str = "web") -> str:
    return snapshot.services[key(name)].annotations["cmd.nu/tunnel"]


def told(snapshot: Snapshot) -> list[tuple[str, str]]:
    return [(problem.key.name, problem.reason) for problem in snapshot.problems]


def notices(folder: ManifestFolder) -> bool:
    """Whether a change is told within the time there is for it."""
    deadline = time.monotonic() + WITHIN
    while (left := deadline - time.monotonic()) > 0:
        if select.select([folder], [], [], left)[0] and folder.drain():
            return True
    return False


def is_quiet(folder: ManifestFolder) -> bool:
    """Whether nothing that matters waits: inotify tells at once, so there is nothing to wait for."""
    return not folder.drain()


class TestReading:
    def test_files_are_read_in_the_order_of_their_names_and_others_are_not(
        self, directory: Path, folder: ManifestFolder
    ) -> None:
        (directory / "b.yaml").write_text(service("b") + "---\n" + service("c") + "---\n# nothing\n")
        (directory / "a.yml").write_text("apiVersion: v1\nkind: List\nitems:\n- " + service("a").replace("\n", "\n  "))
        (directory / "d.json").write_text(json.dumps(documents(service("d").encode())[0]))
        for other in (".e.yaml", "f.yaml~", ".g.yaml.swp", "#h.yaml", "i.txt", "j.yaml.orig", "~k.yaml"):
            (directory / other).write_text(service("other"))
        (directory / "l.yaml").mkdir()
        os.mkfifo(directory / "m.yaml")
        snapshot = folder.read()
        assert [found.name for found in snapshot.services] == ["a", "b", "c", "d"]
        assert snapshot.problems == ()

    def test_an_unchanged_folder_gives_the_same_snapshot_without_parsing(
        self, directory: Path, folder: ManifestFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = directory / "a.yaml"
        path.write_text(service())
        os.utime(path, (1, 1))
        first = folder.read()
        monkeypatch.setattr(manifests, "documents", lambda *_, **__: pytest.fail("it was parsed again"))
        assert folder.read() is first

    def test_a_change_of_the_same_size_within_a_tick_is_seen(self, directory: Path, folder: ManifestFolder) -> None:
        path = directory / "a.yaml"
        for number in range(5):
            path.write_text(service(tunnel=f"198.51.100.{number}"))
            assert vip(folder.read()) == f"198.51.100.{number}"

    def test_an_object_in_two_files_counts_from_the_first(self, directory: Path, folder: ManifestFolder) -> None:
        (directory / "b.yaml").write_text(service(tunnel="198.51.100.2"))
        (directory / "a.yaml").write_text(service(tunnel="198.51.100.1"))
        snapshot = folder.read()
        assert vip(snapshot) == "198.51.100.1"
        assert told(snapshot) == [("b.yaml", "DuplicateObject")]
        assert "Service default/web is in a.yaml already" in snapshot.problems[0].message

    def test_an_object_twice_in_a_file_counts_once(self, directory: Path, folder: ManifestFolder) -> None:
        (directory / "a.yaml").write_text(service(tunnel="198.51.100.1") + "---\n" + service(tunnel="198.51.100.2"))
        snapshot = folder.read()
        assert vip(snapshot) == "198.51.100.1"
        assert "a.yaml:11: Service default/web is earlier in this file" in snapshot.problems[0].message


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("content", "line"),
        [
            (b"a: [\n", 2),
            (b"a: 1\nb: : 2\n", 2),
            (b"a: 1\n\xff\xfe\n", 2),
            (b"a: 1\nb: \x01\n", 2),
            (b"a: !!python/object:os.system {}\n", 1),
            (service("other").encode() + b"---\n\ta: 1\n", 11),
        ],
    )
    def test_malformed_yaml_is_named_with_its_line_and_other_files_go_on(
        self, directory: Path, folder: ManifestFolder, content: bytes, line: int
    ) -> None:
        (directory / "a.yaml").write_bytes(content)
        (directory / "b.yaml").write_text(service())
        snapshot = folder.read()
        assert names(snapshot) == ["web"]
        assert told(snapshot) == [("a.yaml", "UnreadableFile")]
        assert snapshot.problems[0].message.startswith(f"{directory}/a.yaml:{line}: ")
        assert snapshot.problems[0].kind == "File"

    @pytest.mark.parametrize("content", ['{"a": 1,\n x}', "[" * 5000, '{"kind": "Service", "apiVersion": "v1"}'])
    def test_malformed_json_is_named(self, directory: Path, folder: ManifestFolder, content: str) -> None:
        (directory / "a.json").write_text(content)
        assert told(folder.read()) == [("a.json", "UnreadableFile")]

    def test_the_last_good_version_is_kept_while_a_file_is_broken(
        self, directory: Path, folder: ManifestFolder
    ) -> None:
        path = directory / "a.yaml"
        path.write_text(service("one") + "---\n" + service("two"))
        folder.read()
        for broken in ("a: [\n", "b: : 2\n"):
            path.write_text(broken)
            snapshot = folder.read()
            assert names(snapshot) == ["one", "two"]
            assert told(snapshot) == [("a.yaml", "UnreadableFile")]
            assert "last good version" in snapshot.problems[0].message
        path.write_text(service("two"))
        snapshot = folder.read()
        assert names(snapshot) == ["two"]
        assert snapshot.problems == ()

    def test_a_malformed_object_keeps_its_last_good_version_and_the_rest_changes(
        self, directory: Path, folder: ManifestFolder
    ) -> None:
        path = directory / "a.yaml"
        path.write_text(service("one", "198.51.100.1") + "---\n" + service("two", "198.51.100.2"))
        folder.read()
        path.write_text(service("one", "198.51.100.3", port="x") + "---\n" + service("two", "198.51.100.4"))
        snapshot = folder.read()
        assert (vip(snapshot, "one"), vip(snapshot, "two")) == ("198.51.100.1", "198.51.100.4")
        assert snapshot.problems[0].message == (
            f"{path}:9: Service default/one: spec.ports[0].port is 'x', not a number from 1 to 65535; "
            "its last good version stays in use"
        )

    def test_a_malformed_object_that_is_new_is_left_out(self, directory: Path, folder: ManifestFolder) -> None:
        (directory / "a.yaml").write_text(service("one", port="x") + "---\n" + service("two"))
        snapshot = folder.read()
        assert names(snapshot) == ["two"]
        assert "left out until it is mended" in snapshot.problems[0].message

    def test_an_object_that_lost_its_name_may_be_any_that_is_missing(
        self, directory: Path, folder: ManifestFolder
    ) -> None:
        path = directory / "a.yaml"
        path.write_text(service("one") + "---\n" + service("two"))
        folder.read()
        path.write_text(service("[]") + "---\n" + service("two"))
        assert names(folder.read()) == ["one", "two"]

    def test_a_link_that_leads_nowhere_is_told_and_what_it_said_is_kept(
        self, directory: Path, folder: ManifestFolder, tmp_path: Path
    ) -> None:
        target = tmp_path / "elsewhere"
        target.write_text(service())
        (directory / "a.yaml").symlink_to(target)
        assert names(folder.read()) == ["web"]
        target.unlink()
        snapshot = folder.read()
        assert names(snapshot) == ["web"]
        assert told(snapshot) == [("a.yaml", "UnreadableFile")]
        (directory / "a.yaml").unlink()
        assert folder.read() == Snapshot()

    def test_a_file_full_of_faults_costs_no_more_than_parsing_it_twice(
        self, directory: Path, folder: ManifestFolder
    ) -> None:
        (directory / "a.yaml").write_text("---\n".join(service(f"s{n}", port="x") for n in range(1000)))
        start = time.process_time()
        assert len(folder.read().problems) == 1000
        assert time.process_time() - start < 5


class TestValues:
    def test_times_stay_text(self) -> None:
        assert documents(b"created: 2026-01-01T00:00:00Z\nday: 2026-01-01\n") == [
            {"created": "2026-01-01T00:00:00Z", "day": "2026-01-01"}
        ]

    def test_an_ipv6_address_is_no_number_to_the_base_of_sixty(self) -> None:
        assert documents(b"[1:2:3:4:5:6:7:8, 190:20:30.15, =]") == [["1:2:3:4:5:6:7:8", "190:20:30.15", "="]]

    def test_other_values_are_what_they_look_like(self) -> None:
        assert documents(b"[80, -1, 0x1F, 010, 1_000, 1.5, 1e3, .inf, true, no, ~, null, '80', 4.5.6]") == [
            [80, -1, 31, 8, 1000, 1.5, "1e3", float("inf"), True, False, None, None, "80", "4.5.6"]
        ]

    def test_aliases_and_merges_work(self) -> None:
        assert documents(b"a: &x {p: 1}\nb: {<<: *x, q: 2}\n") == [{"a": {"p": 1}, "b": {"p": 1, "q": 2}}]

    @pytest.mark.parametrize(
        "content",
        [
            b"[" * 3000,
            b"a: !!int ''",
            b"0x_: !!int ''",
            b"{[a]: 1}",
            b"!!bool maybe",
            b"!!timestamp x",
            b"!!timestamp 2026-99-99",
        ],
    )
    def test_what_the_loader_cannot_take_is_one_kind_of_error(self, content: bytes) -> None:
        with pytest.raises(DocumentError):
            documents(content)


class TestFollowing:
    def test_writing_renaming_and_deleting_are_noticed(self, directory: Path, folder: ManifestFolder) -> None:
        folder.drain()
        assert is_quiet(folder)
        (directory / "a.yaml").write_text(service())
        assert notices(folder)
        assert names(folder.read()) == ["web"]
        (directory / "a.yaml").rename(directory / "a.off")
        assert notices(folder)
        assert names(folder.read()) == []
        (directory / "a.off").rename(directory / "b.yaml")
        assert notices(folder)
        assert names(folder.read()) == ["web"]
        (directory / "b.yaml").unlink()
        assert notices(folder)
        assert folder.read() == Snapshot()

    def test_other_files_are_not_told(self, directory: Path, folder: ManifestFolder) -> None:
        folder.drain()
        (directory / ".service-tunnel" / "buckets").mkdir(parents=True)
        (directory / ".a.yaml.swp").write_text("x")
        (directory / "a.yaml~").write_text("x")
        (directory.parent / "neighbour").mkdir()
        assert is_quiet(folder)

    def test_a_file_counts_when_it_is_closed(self, directory: Path, folder: ManifestFolder) -> None:
        path = directory / "a.yaml"
        path.write_text(service("one") + "---\n" + service("two"))
        folder.read()
        folder.drain()
        with path.open("w") as file:
            file.write(service("one"))
            file.flush()
            assert is_quiet(folder)
            assert names(folder.read()) == ["one", "two"]
            (directory / "b.yaml").write_text(service("three"))
            assert names(folder.read()) == ["one", "three", "two"]
        assert notices(folder)
        assert names(folder.read()) == ["one", "three"]

    def test_what_happens_while_reading_is_told_afterwards(
        self, directory: Path, folder: ManifestFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (directory / "a.yaml").write_text(service("one"))
        (directory / "b.yaml").write_text(service("two"))
        folder.drain()

        def change_meanwhile(content: bytes, is_json: bool = False) -> list[object]:
            if b"two" in content:
                (directory / "a.yaml").write_text(service("three"))
            return documents(content, is_json)

        monkeypatch.setattr(manifests, "documents", change_meanwhile)
        (directory / "c.yaml").write_text(service("four"))
        assert names(folder.read()) == ["four", "one", "two"]
        assert notices(folder)
        monkeypatch.undo()
        assert names(folder.read()) == ["four", "three", "two"]

    def test_a_folder_that_is_removed_is_empty_and_comes_back(self, directory: Path, folder: ManifestFolder) -> None:
        (directory / "a.yaml").write_text(service())
        folder.read()
        folder.drain()
        shutil.rmtree(directory)
        assert notices(folder)
        snapshot = folder.read()
        assert snapshot.services == {}
        assert told(snapshot) == [("manifests", "UnreadableFolder")]
        folder.drain()
        directory.mkdir()
        assert notices(folder)
        assert folder.read() == Snapshot()
        folder.drain()
        (directory / "a.yaml").write_text(service())
        assert notices(folder)
        assert names(folder.read()) == ["web"]

    def test_a_folder_that_is_made_later_is_found_with_all_that_leads_to_it(self, tmp_path: Path) -> None:
        deep = tmp_path / "a" / "b" / "manifests"
        folder = ManifestFolder(deep)
        try:
            assert told(folder.read()) == [("manifests", "UnreadableFolder")]
            folder.drain()
            deep.mkdir(parents=True)
            assert notices(folder)
            folder.drain()
            (deep / "a.yaml").write_text(service())
            assert notices(folder)
            assert names(folder.read()) == ["web"]
        finally:
            folder.close()

    def test_another_folder_in_its_place_is_followed(self, directory: Path, folder: ManifestFolder) -> None:
        (directory / "a.yaml").write_text(service("old"))
        folder.read()
        folder.drain()
        other = directory.parent / "other"
        other.mkdir()
        (other / "a.yaml").write_text(service("new"))
        directory.rename(directory.parent / "before")
        other.rename(directory)
        assert notices(folder)
        assert names(folder.read()) == ["new"]
        folder.drain()
        (directory / "b.yaml").write_text(service("newer"))
        assert notices(folder)

    def test_a_mounted_config_map_changes_by_one_rename(self, directory: Path, folder: ManifestFolder) -> None:
        def publish(version: str, content: dict[str, str]) -> None:
            (directory / version).mkdir()
            for name, text in content.items():
                (directory / version / name).write_text(text)
            (directory / "..data_tmp").symlink_to(version)
            (directory / "..data_tmp").rename(directory / "..data")

        publish("..2026_01", {"a.yaml": service("one"), "b.yaml": service("two")})
        for name in ("a.yaml", "b.yaml"):
            (directory / name).symlink_to(f"..data/{name}")
        assert names(folder.read()) == ["one", "two"]
        folder.drain()
        publish("..2026_02", {"a.yaml": service("uno"), "b.yaml": service("due")})
        assert notices(folder)
        assert names(folder.read()) == ["due", "uno"]
        assert folder.read().problems == ()

    def test_a_folder_behind_a_link_is_followed_when_the_link_is_swapped(self, tmp_path: Path) -> None:
        for version in ("v1", "v2"):
            (tmp_path / version).mkdir()
            (tmp_path / version / "a.yaml").write_text(service(version))
        link = tmp_path / "manifests"
        link.symlink_to("v1")
        folder = ManifestFolder(link)
        try:
            assert names(folder.read()) == ["v1"]
            folder.drain()
            (tmp_path / "new").symlink_to("v2")
            (tmp_path / "new").rename(link)
            assert notices(folder)
            assert names(folder.read()) == ["v2"]
            folder.drain()
            (tmp_path / "v2" / "b.yaml").write_text(service("more"))
            assert notices(folder)
        finally:
            folder.close()
