"""The process that holds one machine: `python -m conformance.cluster.keeper JSON`, started by `machine.Machine`.

It stays outside of what it holds. The machine's file system is a tmpfs in this process' mount namespace; the machine's
first process, in namespaces of all kinds, is its grandchild. When standard input ends, that is when the process that
built the machine closes it or dies of whatever cause, it kills that first process, with which the kernel ends all the
others, and removes the cgroups. The line `reboot` does the same and starts the machine anew: what lies in /run is gone
then, /etc, /opt and /var are as they were.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.testbed.holder import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    MNT_DETACH,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    MS_SHARED,
    check,
    mount,
)
from tests.testbed.namespaces import PR_SET_PDEATHSIG

CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CGROUPS = Path("/sys/fs/cgroup")
INMATES = "inmates"
CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")
"""Of cgroups of version 2, those that a kubelet wants."""
DISK = Path("/mnt")
"""Where the machine's file system is mounted; a folder that every machine has, and nobody looks for anything in."""
OWN_FOLDERS = ("opt", "var/lib", "var/log", "var/tmp")
"""Of the machine alone, and empty at first; /etc is a layer above the outer machine's."""

_libc = ctypes.CDLL(None, use_errno=True)


def hierarchies() -> dict[str, Path]:
    """Where cgroups are mounted, by the options that mount them again; one, by `unified`, where there is v2 only."""
    found = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" and Path(place) == CGROUPS:
            return {"unified": CGROUPS}
        if kind == "cgroup" and Path(place).parent == CGROUPS:
            kept = [
                word for word in options.split(",") if word not in ("rw", "ro", "relatime", "nosuid", "nodev", "noexec")
            ]
            found[",".join(kept)] = Path(place)
    return found


def own_cgroups(name: str) -> list[Path]:
    return [place / name for place in hierarchies().values()]


def entrances(name: str) -> list[Path]:
    """The files by which a process gets into the machine's cgroups."""
    # In version 2 a cgroup whose resources are shared out has no processes itself.
    return [folder / (INMATES if _is_v2(folder) else "") / "cgroup.procs" for folder in own_cgroups(name)]


def _is_v2(folder: Path) -> bool:
    return folder.parent == CGROUPS


def make_cgroups(name: str) -> None:
    for folder in own_cgroups(name):
        folder.mkdir(exist_ok=True)
        if _is_v2(folder):
            (folder / INMATES).mkdir(exist_ok=True)
            for parent in (CGROUPS, folder):
                given = (parent / "cgroup.controllers").read_text().split()
                shared = (parent / "cgroup.subtree_control").read_text().split()
                for controller in {*given} & {*CONTROLLERS} - {*shared}:
                    (parent / "cgroup.subtree_control").write_text(f"+{controller}")
        elif (folder / "cpuset.cpus").exists():
            for file in ("cpuset.cpus", "cpuset.mems"):  # a new cpuset is empty, and nothing can run in it
                (folder / file).write_text((folder.parent / file).read_text())
            (folder / "cgroup.clone_children").write_text("1")


def remove_cgroups(name: str) -> None:
    deadline = time.monotonic() + 10
    for folder in own_cgroups(name):
        for below, _, _ in os.walk(folder, topdown=False):
            while True:
                try:
                    os.rmdir(below)
                    break
                except FileNotFoundError:
                    break
                except OSError:  # its last process is on its way out
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.02)


def cgroup_of(name: str) -> str:
    """The name of the cgroups of this process' machine `name`."""
    return f"svctun-{os.getpid()}-{name}"


def sweep() -> None:
    """Removes cgroups of machines whose makers, and keepers, were killed."""
    for place in hierarchies().values():
        for folder in place.glob("svctun-*"):
            if not Path("/proc", folder.name.split("-")[1]).exists():
                remove_cgroups(folder.name)


def enter_cgroups(name: str) -> None:
    """With a cgroup namespace whose root they are."""
    for folder in own_cgroups(name):
        (folder / "cgroup.procs").write_text("0")
    check(_libc.unshare(CLONE_NEWCGROUP), "unshare")
    for file in entrances(name):
        file.write_text("0")


def make_disk() -> None:
    check(_libc.unshare(CLONE_NEWNS), "unshare")
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", DISK, "tmpfs", options="mode=755")
    for folder in (*OWN_FOLDERS, "etc", "work"):
        (DISK / folder).mkdir(parents=True)


def mount_everything(wanted: dict[str, Any]) -> None:
    """In the machine's namespaces: what its programs see."""
    cgroups = hierarchies()
    mount("none", "/", "", MS_REC | MS_SHARED)  # as systemd has it; runtimes and kubelet want it so
    mount("proc", "/proc", "proc")
    check(_libc.umount2(b"/sys", MNT_DETACH), "unmounting /sys")  # who looks for cgroups would find the outer ones, too
    mount("sysfs", "/sys", "sysfs")
    if "unified" in cgroups:
        mount("cgroup2", CGROUPS, "cgroup2")
    else:
        mount("tmpfs", CGROUPS, "tmpfs", options="mode=755")
        for options, place in cgroups.items():
            place.mkdir()
            mount("cgroup", place, "cgroup", options=options)
        # What has no hierarchy is listed as if it were there, and CRI-O believes it.
        heading, *lines = Path("/proc/cgroups").read_text().splitlines()
        listed = DISK / "cgroups"
        listed.write_text("\n".join([heading, *(line for line in lines if line.split()[1] != "0")]) + "\n")
        mount(str(listed), "/proc/cgroups", "", MS_BIND)
    mount("tmpfs", "/run", "tmpfs", options="mode=755")
    for folder in ("/run/lock", "/run/netns", "/run/tmp"):
        os.mkdir(folder)
    for name in OWN_FOLDERS:
        mount(str(DISK / name), f"/{name}", "", MS_BIND)
    mount("overlay", "/etc", "overlay", options=f"lowerdir=/etc,upperdir={DISK}/etc,workdir={DISK}/work")
    for path, text in wanted["files"].items():
        with suppress(FileNotFoundError):
            os.unlink(path)  # it may be a symlink
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    another_boot = Path("/proc/sys/kernel/random/uuid").read_text().strip()
    for key, value in {**wanted["shown"], "kernel.random.boot_id": another_boot}.items():
        shown = Path("/run/shown") / key
        shown.parent.mkdir(exist_ok=True)
        shown.write_text(f"{value}\n")
        mount(str(shown), "/proc/sys/" + key.replace(".", "/"), "", MS_BIND)


def first_process(wanted: dict[str, Any], ready: int) -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whose parents have ended: nobody waits for them
    try:
        name = wanted["name"].encode()
        check(_libc.sethostname(name, len(name)), "sethostname")
        mount_everything(wanted)
        for key, value in wanted["sysctls"].items():
            Path("/proc/sys/" + key.replace(".", "/")).write_text(f"{value}\n")
        os.write(ready, b"ready")
    except BaseException as error:
        os.write(ready, repr(error).encode())
        os._exit(1)
    os.close(ready)
    while True:
        signal.pause()


def boot(wanted: dict[str, Any]) -> tuple[int, int]:
    """The process to wait for, and the machine's first; raises RuntimeError."""
    make_cgroups(wanted["cgroup"])
    reading, writing = os.pipe()
    telling, told = os.pipe()
    between = os.fork()  # a process cannot enter a new process namespace itself
    if between == 0:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.close(reading)
        os.close(telling)
        enter_cgroups(wanted["cgroup"])
        kinds = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
        check(_libc.unshare(kinds), "unshare")
        first = os.fork()
        if first == 0:
            first_process(wanted, writing)
        os.close(writing)
        os.write(told, str(first).encode())
        os.close(told)
        os.waitpid(first, 0)
        os._exit(0)
    os.close(writing)
    os.close(told)
    first = int(os.read(telling, 32) or 0)
    said = os.read(reading, 4096)
    os.close(reading)
    os.close(telling)
    if said != b"ready":
        raise RuntimeError(said.decode() or "it ended at once")
    return between, first


def power_off(between: int, first: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(first, signal.SIGKILL)
    os.waitpid(between, 0)


def main() -> None:
    wanted = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    running: tuple[int, int] | None = None
    try:
        make_disk()
        running = boot(wanted)
        print(f"ready {running[1]}", flush=True)
        for line in sys.stdin:
            if line.strip() == "reboot":
                power_off(*running)
                running = None
                remove_cgroups(wanted["cgroup"])
                running = boot(wanted)
                print(f"ready {running[1]}", flush=True)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if running is not None:
            power_off(*running)
        remove_cgroups(wanted["cgroup"])


if __name__ == "__main__":
    main()
