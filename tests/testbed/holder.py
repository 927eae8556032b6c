"""The process that holds a host's namespaces, and takes everything in them along when it ends.

Started by `host.Host` as a program of its own: `python holder.py JSON`. It ends when its standard input
does, that is, when the process that built the testbed closes it or dies of whatever cause, or on SIGTERM;
then it kills every process in its mount namespace or in a network namespace that is named there, so that
no namespace, mount or device is left. After the line `keep` only SIGTERM ends it.

The end of a pipe is used, not PR_SET_PDEATHSIG, because that follows the thread that started the process,
and hosts may be built by threads.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import time
from contextlib import suppress

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
MNT_DETACH = 2
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str | os.PathLike[str], kind: str, flags: int = 0, options: str = "") -> None:
    arguments = (source.encode(), os.fsencode(target), kind.encode(), flags, options.encode())
    check(_libc.mount(*arguments), f"mount of {kind or source} on {target}")


def make_namespaces() -> None:
    """New network and mount namespaces, in which the folders that a node writes to are its own."""
    check(_libc.unshare(CLONE_NEWNS | CLONE_NEWNET), "unshare")
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("sysfs", "/sys", "sysfs")
    mount("tmpfs", "/run", "tmpfs", options="mode=755")
    os.mkdir("/run/lock")
    os.mkdir("/run/netns")
    # What iproute2 does at its first `ip netns add`. Done later, the names made before would be mounted
    # twice, and unmounting them would leave the namespaces alive.
    mount("/run/netns", "/run/netns", "", MS_BIND | MS_REC)
    mount("none", "/run/netns", "", MS_REC | MS_SHARED)
    os.makedirs("/run/node/upper")
    os.makedirs("/run/node/work")
    # /var/lib/cni and the like may not exist, and are not to be made on the machine's own file system.
    try:
        layers = "lowerdir=/var/lib,upperdir=/run/node/upper,workdir=/run/node/work"
        mount("overlay", "/var/lib", "overlay", options=layers)
    except OSError:
        # A kernel without overlay: nothing of what the machine has there is needed on a node.
        mount("tmpfs", "/var/lib", "tmpfs", options="mode=755")
    mount("tmpfs", "/var/log", "tmpfs", options="mode=755")


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP) + bytes(22))


def write_sysctls(values: dict[str, object]) -> None:
    for key, value in values.items():
        with open("/proc/sys/" + key.replace(".", "/"), "w") as file:
            file.write(f"{value}\n")


def inmates() -> list[int]:
    """Processes, other than this one, that are in our mount namespace or in a network namespace of ours."""
    names = [f"/run/netns/{name}" for name in os.listdir("/run/netns")]
    nets = {os.stat(path).st_ino for path in ["/proc/self/ns/net", *names]}
    mount = os.stat("/proc/self/ns/mnt").st_ino
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            # Processes come and go while we look.
            with suppress(OSError):
                if os.stat(f"/proc/{name}/ns/mnt").st_ino == mount or os.stat(f"/proc/{name}/ns/net").st_ino in nets:
                    found.append(int(name))
    return found


def kill_inmates() -> None:
    deadline = time.monotonic() + 10
    while (pids := inmates()) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def remove_name(name: str, outside: int, root: int) -> None:
    """Take the namespace's name off the machine, which is seen from the outer mount namespace only."""
    check(_libc.setns(outside, CLONE_NEWNS), "setns")
    os.fchdir(root)
    os.chroot(".")
    path = f"/run/netns/{name}"
    _libc.umount2(path.encode(), MNT_DETACH)
    with suppress(FileNotFoundError):
        os.unlink(path)


def wait_for_the_end() -> None:
    with suppress(SystemExit):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        print("ready", flush=True)
        for line in sys.stdin:
            if line.strip() == "keep":
                while True:
                    signal.pause()


def main() -> None:
    wanted = json.loads(sys.argv[1])
    outside = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    root = os.open("/", os.O_RDONLY)
    make_namespaces()
    loopback_up()
    write_sysctls(wanted["sysctls"])
    # A SIGTERM until here just kills: nothing is there to clean up yet.
    wait_for_the_end()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    kill_inmates()
    if wanted["name"]:
        remove_name(wanted["name"], outside, root)


if __name__ == "__main__":
    main()
