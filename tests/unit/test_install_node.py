"""The installer on folders of this machine: modes, symlinks, races, versions, errors, and what `watch` does."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from inotify_simple import INotify, flags

from install.node import files, store
from install.node.chain import TYPE, ConfigUnusable, Remove, Write, installation
from install.node.cli import main
from install.node.files import Changed, FileTrouble
from install.node.installer import Contended, Found, Target, install, take_entry_out
from install.node.store import KEPT_FOR, PluginUnusable, Store
from tests.unit.test_install_chain import ENTRY, LIST, SINGLE

PATIENCE = float(os.environ.get("TEST_PATIENCE", "20"))


def quiet(_: str) -> None:
    """Nobody listens."""


def plugin(folder: Path, version: str = "1.0", content: str = "") -> Path:
    """Something that answers as the plugin does."""
    (folder / "_internal" / "deep").mkdir(parents=True)
    (folder / "_internal" / "deep" / "module").write_text(content)
    (folder / "_internal" / "link").symlink_to("deep/module")
    program = folder / "service-tunnel"
    program.write_text(f"#!/bin/sh\necho CNI service-tunnel plugin v{version}\n")
    program.chmod(0o750)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Target:
    for name in ("bin", "net.d"):
        (tmp_path / name).mkdir()
    return Target(tmp_path / "bin", tmp_path / "net.d", plugin(tmp_path / "source"), ENTRY, say=quiet)


def write(target: Target, name: str, content: Any) -> Path:
    path = target.conf_dir / name
    path.write_text(json.dumps(content))
    return path


def types(path: Path) -> list[str]:
    return [plugin["type"] for plugin in json.loads(path.read_text())["plugins"]]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not come to be"
        time.sleep(0.01)


# ---- configuration ------------------------------------------------------------------------------------------------


def test_a_list_keeps_mode_and_owner_and_nothing_else_is_left_in_the_folder(target: Target) -> None:
    path = write(target, "10.conflist", LIST)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12, 34)
    before = path.stat()
    assert install(target) == Found("10.conflist", 1)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert types(path) == ["bridge", "portmap", TYPE] and os.listdir(target.conf_dir) == ["10.conflist"]


def test_a_wrapping_list_has_the_mode_of_what_it_wraps(target: Target) -> None:
    write(target, "10.conf", SINGLE).chmod(0o600)
    install(target)
    assert stat.S_IMODE((target.conf_dir / "10-service-tunnel.conflist").stat().st_mode) == 0o600


def test_a_second_run_writes_nothing(target: Target) -> None:
    write(target, "10.conflist", LIST)
    install(target)
    before = {path: path.lstat().st_ctime_ns for path in target.bin_dir.parent.rglob("*") if "source" not in path.parts}
    assert install(target) == Found("10.conflist", 0)
    assert {path: path.lstat().st_ctime_ns for path in before} == before


def test_a_symlinked_folder_and_a_symlinked_file_stay_symlinks(target: Target, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "real"
    real.write_text(json.dumps(LIST))
    (target.conf_dir / "10.conflist").symlink_to(real)
    (tmp_path / "link").symlink_to("net.d")
    assert install(replace(target, conf_dir=tmp_path / "link")).changed == 1
    assert (tmp_path / "link").is_symlink() and (target.conf_dir / "10.conflist").is_symlink()
    assert types(real) == ["bridge", "portmap", TYPE] and os.listdir(real.parent) == ["real"]


def test_a_symlink_that_leads_nowhere_is_named(target: Target) -> None:
    (target.conf_dir / "10.conflist").symlink_to("gone")
    with pytest.raises(FileTrouble, match=r"10\.conflist is a symlink to gone"):
        install(target)


@pytest.mark.parametrize("content", [b'{"name": "a", // comment\n"plugins": []}', b"", b"{"])
def test_a_file_that_is_no_json_stays_byte_for_byte(target: Target, content: bytes) -> None:
    path = target.conf_dir / "10.conflist"
    path.write_bytes(content)
    with pytest.raises(ConfigUnusable, match=r"10\.conflist is no JSON"):
        install(target)
    assert path.read_bytes() == content and os.listdir(target.conf_dir) == ["10.conflist"]


def test_a_folder_that_is_not_there_yet_has_no_network(target: Target) -> None:
    assert install(replace(target, conf_dir=target.conf_dir / "later")) == Found("", 0)
    assert (target.bin_dir / TYPE).is_file()


def test_what_a_killed_installer_left_is_swept(target: Target) -> None:
    write(target, "10.conflist", LIST)
    (target.conf_dir / f".10.conflist.1{files.ASIDE}").touch()
    (target.bin_dir / ".service-tunnel").mkdir()
    (target.bin_dir / ".service-tunnel" / ".new-1").mkdir()
    install(target)
    assert os.listdir(target.conf_dir) == ["10.conflist"]
    assert sorted(os.listdir(target.bin_dir / ".service-tunnel")) == ["1.0"]


def test_what_somebody_wrote_between_our_look_and_our_change_is_kept(target: Target) -> None:
    path = write(target, "10.conflist", LIST)
    (change,) = installation(files.read(target.conf_dir), ENTRY).changes
    newer = json.dumps({**LIST, "x": 1})
    path.write_text(newer)
    with pytest.raises(Changed):
        files.make(target.conf_dir, change)
    assert path.read_text() == newer and os.listdir(target.conf_dir) == ["10.conflist"]
    path.unlink()
    for late in (change, Remove("10.conflist", b"")):
        with pytest.raises(Changed):
            files.make(target.conf_dir, late)
    path.write_text(newer)
    for late in (Write("10.conflist", b"", None, "10.conflist"), Remove("10.conflist", b"")):
        with pytest.raises(Changed):
            files.make(target.conf_dir, late)
    assert path.read_text() == newer and os.listdir(target.conf_dir) == ["10.conflist"]


def test_where_files_cannot_be_exchanged_the_look_before_the_rename_decides(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_rename", lambda *_: 22)
    path = write(target, "10.conflist", LIST)
    (change,) = installation(files.read(target.conf_dir), ENTRY).changes
    files.make(target.conf_dir, change)
    assert types(path)[-1] == TYPE
    with pytest.raises(Changed):
        files.make(target.conf_dir, change)
    write(target, "05.conf", SINGLE)
    assert install(target).changed == 1
    assert os.listdir(target.conf_dir).count("05-service-tunnel.conflist") == 1


def test_a_primary_that_writes_all_the_time_loses_no_version_and_readers_see_whole_files(target: Target) -> None:
    """Each version that it renames into place is there, with or without the entry, until its next one."""
    path = write(target, "10.conflist", {**LIST, "x-version": 0})
    lost: list[int] = []

    def primary() -> None:
        for version in range(1, 200):
            new = target.conf_dir / ".primary"
            new.write_text(json.dumps({**LIST, "x-version": version}))
            new.rename(path)
            for _ in range(20):
                if json.loads(path.read_text())["x-version"] != version:
                    # It may be seen for the moment in which the two are exchanged; then it is back.
                    until_back = time.monotonic() + PATIENCE
                    while json.loads(path.read_text())["x-version"] != version:
                        if time.monotonic() > until_back:
                            lost.append(version)
                            return

    with ThreadPoolExecutor(3) as threads:
        writing = threads.submit(primary)
        while not writing.done():
            with suppress(Contended):  # it writes without any pause
                list(threads.map(install, [target, target]))
        writing.result()
    install(target)
    assert not lost and types(path) == ["bridge", "portmap", TYPE]
    assert json.loads(path.read_text())["x-version"] == 199


@pytest.mark.parametrize("name", ["10.conflist", "10.conf"])
def test_runtimes_that_pass_over_created_files_are_told_when_all_is_in_place(target: Target, name: str) -> None:
    """Containerd looks again at what is renamed or removed, not at what is created; CRI-O at each of these."""
    write(target, name, LIST if name.endswith("list") else SINGLE)
    target.store.put(target.source)
    with INotify() as events:
        events.add_watch(target.conf_dir, flags.MOVED_FROM | flags.MOVED_TO | flags.DELETE)
        install(target)
        told = [(event.name, event.mask) for event in events.read(timeout=0)]
    put = max(at for at, (named, mask) in enumerate(told) if mask & flags.MOVED_TO and named.endswith(".conflist"))
    moved = [at for at, (_, mask) in enumerate(told) if mask & (flags.MOVED_FROM | flags.DELETE)]
    # The kernel tells of a rename in two events when it is over, so whoever hears either finds the new file.
    assert moved and moved[-1] >= put - 1


def test_installers_at_once_put_it_once(target: Target) -> None:
    path = write(target, "10.conflist", LIST)
    write(target, "11.conf", SINGLE)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(install, [target] * 16))
    assert sum(one.changed for one in found) == 1
    assert types(path) == ["bridge", "portmap", TYPE]
    assert sorted(os.listdir(target.conf_dir)) == ["10.conflist", "11.conf"]
    assert sorted(os.listdir(target.bin_dir / ".service-tunnel")) == ["1.0"]


def test_what_is_put_on_is_taken_off_to_the_last_value(target: Target) -> None:
    path = write(target, "10.conflist", LIST)
    write(target, "05.conf", SINGLE)
    install(target)
    (target.conf_dir / "05.conf").rename(target.conf_dir / "50.conf")
    install(target)
    assert take_entry_out(target.conf_dir, quiet) == ()
    assert json.loads(path.read_text()) == LIST
    assert sorted(os.listdir(target.conf_dir)) == ["10.conflist", "50.conf"]
    assert take_entry_out(target.conf_dir / "none", quiet) == ()


# ---- the plugin ---------------------------------------------------------------------------------------------------


def test_the_plugin_lies_in_a_folder_of_its_version_behind_one_symlink(target: Target) -> None:
    install(target)
    assert os.readlink(target.bin_dir / TYPE) == ".service-tunnel/1.0/service-tunnel"
    folder = target.bin_dir / ".service-tunnel" / "1.0"
    assert stat.S_IMODE((folder / TYPE).stat().st_mode) == 0o755
    assert os.readlink(folder / "_internal" / "link") == "deep/module"
    assert stat.S_IMODE((folder / "_internal" / "deep" / "module").stat().st_mode) == 0o644


def test_upgrade_and_downgrade_keep_the_other_version_for_a_while(target: Target, tmp_path: Path) -> None:
    install(target)
    newer = replace(target, source=plugin(tmp_path / "newer", "1.1"))
    install(newer)
    versions = target.bin_dir / ".service-tunnel"
    assert target.store.chosen() == "1.1" and sorted(os.listdir(versions)) == ["1.0", "1.1"]
    inode = (versions / "1.0" / TYPE).stat().st_ino
    install(target)
    assert target.store.chosen() == "1.0" and (versions / "1.0" / TYPE).stat().st_ino == inode
    past = time.time() - KEPT_FOR - 60
    for name in ("1.0", "1.1"):
        os.utime(versions / name, (past, past))
    install(target)
    assert os.listdir(versions) == ["1.0"]


def test_another_build_of_the_same_version_does_not_touch_the_one_that_runs(target: Target, tmp_path: Path) -> None:
    install(target)
    other = replace(target, source=plugin(tmp_path / "other", "1.0", "something else"))
    install(other)
    name = target.store.chosen()
    assert name.startswith("1.0-") and (target.bin_dir / ".service-tunnel" / "1.0" / TYPE).is_file()
    install(other)
    assert target.store.chosen() == name


def test_a_damaged_folder_is_replaced_by_a_whole_one(target: Target) -> None:
    install(target)
    (target.bin_dir / ".service-tunnel" / "1.0" / "_internal" / "deep" / "module").unlink()
    install(target)
    assert target.store.chosen() != "1.0" and (target.bin_dir / TYPE).is_file()
    (target.bin_dir / TYPE).unlink()
    install(target)
    assert (target.bin_dir / TYPE).is_file()


def test_a_file_that_was_copied_by_hand_gives_way_and_a_folder_is_named(target: Target) -> None:
    (target.bin_dir / TYPE).write_text("by hand")
    install(target)
    assert target.store.chosen() == "1.0"
    (target.bin_dir / TYPE).unlink()
    (target.bin_dir / TYPE).mkdir()
    with pytest.raises(FileTrouble, match="is a folder: take it away"):
        install(target)


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 1\n", "#!/no/such/interpreter\n", "#!/bin/sh\necho something\n"])
def test_a_plugin_that_does_not_start_here_never_gets_into_its_place(
    target: Target, tmp_path: Path, script: str
) -> None:
    path = write(target, "10.conflist", LIST)
    broken = plugin(tmp_path / "broken")
    (broken / TYPE).write_text(script)
    with pytest.raises(PluginUnusable, match="does not start on this node"):
        install(replace(target, source=broken))
    assert os.listdir(target.bin_dir / ".service-tunnel") == [] and TYPE not in types(path)
    with pytest.raises(PluginUnusable, match="there is no plugin in"):
        install(replace(target, source=tmp_path))


def test_purge_leaves_nothing(target: Target) -> None:
    install(target)
    target.store.purge()
    target.store.purge()
    assert os.listdir(target.bin_dir) == []


# ---- the command --------------------------------------------------------------------------------------------------


def command(target: Target, verb: str, *more: str) -> list[str]:
    found = [verb, "--bin-dir", str(target.bin_dir), "--conf-dir", str(target.conf_dir), *more]
    return found if verb == "uninstall" else [*found, "--source", str(target.source)]


def run(target: Target, verb: str, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, command(target, verb, *more), env={"PATH": "/nowhere"})
    return done.exit_code, done.output


@contextmanager
def watching(target: Target, *more: str) -> Iterator[Path]:
    """`watch` as a process; yields the file with what it says."""
    said = target.bin_dir.parent / "said"
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "install.node.cli", *command(target, "watch", *more)], stdout=file
        )
    try:
        yield said
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_install_and_uninstall_say_what_they_do(target: Target) -> None:
    path = write(target, "10.conflist", LIST)
    status, said = run(
        target, "install", "--helper-wait", "3", "--exempt-namespace", "a", "--plugin-log-level", "debug"
    )
    assert status == 0 and "10.conflist has the entry" in said and "plugin 1.0 is in" in said
    assert json.loads(path.read_text())["plugins"][-1] == {
        "type": TYPE,
        "helperWait": 3.0,
        "exemptNamespaces": ["a"],
        "log": {"level": "debug", "file": "/var/log/service-tunnel.log"},
        "capabilities": {"io.kubernetes.cri.pod-annotations": True},
    }
    status, said = run(target, "uninstall")
    assert status == 0 and "10.conflist has the entry no more" in said and "service-tunnel-helper cleanup" in said
    assert (target.bin_dir / TYPE).is_file()
    assert run(target, "uninstall", "--purge")[0] == 0 and os.listdir(target.bin_dir) == []


def test_tunnels_without_a_helper_and_a_drop_in_can_be_asked_for(target: Target) -> None:
    path = write(target, "10.conflist", LIST)
    tunnel = ("--tunnel", "198.51.100.7,2001:db8::7", "--tunnel-mode", "gre", "--drop-in")
    assert run(target, "install", *tunnel)[0] == 0
    entry = json.loads((target.conf_dir / "pods" / "service-tunnel.conf").read_text())
    assert entry["tunnels"] == [{"vips": ["198.51.100.7", "2001:db8::7"], "mode": "gre"}]
    assert types(path) == ["bridge", "portmap"]
    assert run(target, "uninstall")[0] == 0 and os.listdir(target.conf_dir) == ["10.conflist"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--run-dir", "relative"), "runDir"),
        (("--socket", "/a/../b"), "helperSocket"),
        (("--tunnel", "no-address"), "is no IP address"),
        (("--tunnel-mode", "gre"), "name VIPs, too"),
        (("--bin-dir", "/no/such/folder"), "there is no folder /no/such/folder"),
        (("--source", "/no/such/folder"), "there is no plugin in /no/such/folder"),
    ],
)
def test_what_the_plugin_would_refuse_is_refused_before_anything_is_done(
    target: Target, more: tuple[str, ...], says: str
) -> None:
    done = CliRunner().invoke(main, [*command(target, "install"), *more])
    assert done.exit_code and says in done.output and os.listdir(target.bin_dir) == []


def test_install_waits_for_a_network_and_says_so(target: Target) -> None:
    status, said = run(target, "install", "--wait", "0.05")
    assert status == 1 and "waiting 0.05 s for it" in said and "run this again" in said
    later = replace(target, conf_dir=target.conf_dir / "made" / "later")
    (target.bin_dir / TYPE).unlink()
    with subprocess.Popen([sys.executable, "-m", "install.node.cli", *command(later, "install")]) as waiting:
        until(lambda: (target.bin_dir / TYPE).exists())
        later.conf_dir.mkdir(parents=True)
        path = later.conf_dir / "10.conflist"
        with path.open("w") as file:  # as one writes who is in no hurry
            file.flush()
            until(lambda: waiting.poll() is None)
            json.dump(LIST, file)
        assert waiting.wait(PATIENCE) == 0
    assert types(path)[-1] == TYPE


def test_cleanup_needs_the_helper(target: Target) -> None:
    status, said = run(target, "uninstall", "--cleanup")
    assert status == 1 and "run `service-tunnel-helper cleanup` where it is" in said


def test_watch_waits_follows_rewrites_and_a_wiped_folder_and_keeps_uninstall_away(target: Target) -> None:
    path = target.conf_dir / "10.conflist"

    def has_it() -> bool:
        try:
            return types(path)[-1] == TYPE
        except (OSError, ValueError):
            return False

    with watching(target) as said:
        until(lambda: "waiting for it" in said.read_text())
        write(target, "10.conflist", LIST)
        until(has_it)
        for version in range(4):  # in place and by rename, as networks do
            new = json.dumps({**LIST, "x": version})
            if version % 2:
                path.write_text(new)
            else:
                (target.conf_dir / ".new").write_text(new)
                (target.conf_dir / ".new").rename(path)
            until(has_it)
            assert json.loads(path.read_text())["x"] == version
        path.write_text("{")
        until(lambda: "is no JSON" in said.read_text())
        assert path.read_text() == "{"
        write(target, "10.conflist", LIST)
        until(has_it)
        (target.bin_dir / TYPE).unlink()
        until((target.bin_dir / TYPE).exists)
        status, told = run(target, "uninstall")
        assert status == 1 and "watch` is running on this node" in told and has_it()
    assert has_it()
    assert run(target, "uninstall")[0] == 0 and not has_it()


def test_watch_follows_a_conf_folder_that_is_replaced(target: Target, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "10.conflist").write_text(json.dumps(LIST))
    link = tmp_path / "link"
    link.symlink_to("first")
    with watching(replace(target, conf_dir=link)):
        until(lambda: types(tmp_path / "first" / "10.conflist")[-1] == TYPE)
        (tmp_path / "link.new").symlink_to("second")
        (tmp_path / "link.new").rename(link)
        until(lambda: types(tmp_path / "second" / "10.conflist")[-1] == TYPE)


def test_watch_does_not_spin_when_another_program_takes_the_entry_out_each_time(target: Target) -> None:
    path = write(target, "10.conflist", LIST)
    with watching(target) as said:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            if TYPE in types(path):
                path.with_name(".new").write_text(json.dumps(LIST))
                path.with_name(".new").rename(path)
        assert 2 <= said.read_text().count("has the entry") <= 8


def test_a_store_without_a_watcher_lets_uninstall_go_on(tmp_path: Path) -> None:
    Store(tmp_path, quiet).refuse_while_watched()
    with Store(tmp_path, quiet).watching(), pytest.raises(store.Watched):
        Store(tmp_path, quiet).refuse_while_watched()
    Store(tmp_path, quiet).refuse_while_watched()
