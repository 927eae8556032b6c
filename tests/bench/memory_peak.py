"""The most memory that a group of processes held at one time, by a control group of their own.

What the group needs on top of what the machine had in memory before: private memory, page tables, what the kernel
keeps for it, and pages of files that nobody had read yet. Adding up what each process holds would count shared
pages once for every process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KINDS = {
    "/sys/fs/cgroup/memory": ("memory.usage_in_bytes", "memory.max_usage_in_bytes"),
    "/sys/fs/cgroup": ("memory.current", "memory.peak"),
}
"""Where the memory controller is (version 1, version 2), and its files: what is held now, the most that was."""


class NoControlGroup(Exception):
    """This machine has no memory controller in which a group could be made."""


@dataclass(frozen=True)
class Group:
    """A control group, held by descriptors: other mount namespaces do not see its files. It is left by ending."""

    processes: int
    now: int
    most: int

    def enter(self) -> int:
        """Moves this process in, and its children to come; returns the bytes that are held from now on."""
        os.write(self.processes, b"0")
        return _number(self.now)

    def peak(self) -> int:
        """Bytes."""
        return _number(self.most)


def _number(descriptor: int) -> int:
    return int(os.pread(descriptor, 64, 0))


@contextmanager
def group(name: str) -> Iterator[Group]:
    """A new control group, removed at the end. Raises NoControlGroup."""
    top, (now, most) = next(
        ((Path(top), files) for top, files in KINDS.items() if _usable(Path(top), files[1], name)), (Path(), ("", ""))
    )
    if not now:
        raise NoControlGroup(f"no memory controller in which to make a group: looked in {', '.join(KINDS)}")
    folder = top / name
    opened = [
        os.open(path, flags | os.O_CLOEXEC)
        for path, flags in (
            (folder / "cgroup.procs", os.O_WRONLY),
            (folder / now, os.O_RDONLY),
            (folder / most, os.O_RDONLY),
        )
    ]
    try:
        yield Group(*opened)
    finally:
        for descriptor in opened:
            os.close(descriptor)
        folder.rmdir()


def _usable(top: Path, file: str, name: str) -> bool:
    """Whether a group can be made there; it is made by asking."""
    try:
        (top / name).mkdir()
    except OSError:
        return False
    if (top / name / file).exists():
        return True
    (top / name).rmdir()
    return False
