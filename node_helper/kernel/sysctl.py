"""Sysctls below /proc/sys/net that are changed on devices of others, and their values from before.

What was found is kept in a file of the run folder (gone with a reboot, as the changes are), so that it can
be put back when nothing needs the change any more, also by `cleanup` after the daemon is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cni_plugin.pod.state import read_sysctl, write_sysctl
from node_helper.kernel.note_file import NoteFile

STRICT, LOOSE = "1", "2"


class BorrowedSysctls:
    """Sysctls that are ours to change only for as long as they are needed."""

    def __init__(self, run_dir: Path) -> None:
        self.file = NoteFile(run_dir / "sysctls.json")
        noted = self.file.read()
        self._before: dict[str, str] = dict(noted) if isinstance(noted, dict) else {}

    def borrow(self, name: str, value: str) -> bool:
        """Sets a sysctl, remembering what it was; False where there is no such sysctl. Raises OSError."""
        present = read_sysctl(name)
        if present is None:
            return False
        if present != value:
            if name not in self._before:
                self._before[name] = present
                self.file.write(self._before)
            write_sysctl(name, value)
        return True

    def give_back(self, name: str) -> None:
        """Puts a borrowed sysctl back; nothing where it was not borrowed or is gone with its device."""
        before = self._before.pop(name, None)
        if before is not None:
            if read_sysctl(name) is not None:
                write_sysctl(name, before)
            self.file.write(self._before)

    def borrowed(self) -> list[str]:
        return sorted(self._before)


def loosen(
    sysctls: BorrowedSysctls, devices: frozenset[str], guard: Callable[[frozenset[str]], None] = lambda _: None
) -> None:
    """Loose reverse-path filtering on just these devices, where it is strict; put back on all others.

    `guard` is told of all devices that are not as strict as they were: before they are loosened, and when
    they are strict again.
    """
    everywhere = read_sysctl("ipv4/conf/all/rp_filter")
    strict = set()
    for device in sorted(devices):
        present = read_sysctl(_rp_filter(device))
        # The larger of the two counts, so 0 on the device does not help where `all` is strict.
        if present is not None and max(present, everywhere or "0") == STRICT:
            strict.add(device)
    guard(loosened(sysctls) | strict)
    for device in sorted(strict):
        sysctls.borrow(_rp_filter(device), LOOSE)
    for device in sorted(loosened(sysctls) - devices):
        sysctls.give_back(_rp_filter(device))
    guard(loosened(sysctls))


def loosened(sysctls: BorrowedSysctls) -> frozenset[str]:
    """The devices whose reverse-path filter is borrowed."""
    names = (name.split("/") for name in sysctls.borrowed())
    return frozenset(parts[2] for parts in names if parts[-1] == "rp_filter")


def _rp_filter(device: str) -> str:
    return f"ipv4/conf/{device}/rp_filter"
