"""Which network namespace of this node has a pod's address, for runtimes whose records do not say where a pod is.

Entering every namespace is not cheap, so one look serves all pods that are asked for. What vanishes meanwhile is
passed over: its pod has ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from cni_plugin import netns
from cni_plugin.netlink import Socket, rtnl
from cni_plugin.netlink.address import canonical

FOLDERS = ("/run/netns", "/var/run/netns")
"""Where container runtimes keep namespaces; mostly two names of one folder."""


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace, by one of its paths."""

    path: str
    inode: int
    since: int = field(default=0, compare=False)
    """When it was made, in nanoseconds of the clock of files."""


class PodAddresses:
    """An index of the addresses on all interfaces of all namespaces in some folders, made at the first question."""

    def __init__(self, folders: Sequence[str] = FOLDERS) -> None:
        self._folders = folders
        self._index: dict[tuple[str, str], set[Place]] | None = None

    def having(self, interface: str, addresses: Iterable[str]) -> frozenset[Place]:
        """The namespaces whose device of this name has all of these addresses; none where no address is given."""
        if self._index is None:
            self._index = _index(self._folders)
        found = [self._index.get((interface, canonical(address)), set()) for address in addresses]
        return frozenset(set.intersection(*found)) if found else frozenset()


def _index(folders: Sequence[str]) -> dict[tuple[str, str], set[Place]]:
    index: dict[tuple[str, str], set[Place]] = {}
    for place in _places(folders):
        with ExitStack() as inside:  # what fails at its end, the way back, is no matter of one namespace
            try:
                inside.enter_context(netns.entered(place.path, place.inode))
                route = inside.enter_context(Socket())
                names = {link.index: link.name for link in rtnl.dump_links(route)}
                addresses = rtnl.dump_addresses(route)
            except OSError:  # it went between the look at the folder and now, or another took its path
                continue
        for address in addresses:
            index.setdefault((names.get(address.link, ""), canonical(address.address)), set()).add(place)
    return index


def _places(folders: Sequence[str]) -> list[Place]:
    """Each namespace once, whatever paths lead to it; never this process's own."""
    found: dict[int, Place] = {}
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue  # a runtime that keeps them elsewhere
        for name in names:
            path = f"{folder}/{name}"
            try:
                inode = netns.of_pod(path)[1]
                status = os.stat(path)
            except (netns.NoPodNetns, OSError):
                continue  # a file left by one that ended, or the host's own
            if status.st_ino == inode:
                # The kernel gives it its times when it is first mounted, which keeps it, and never changes them.
                found.setdefault(inode, Place(path, inode, status.st_mtime_ns))
    return list(found.values())
