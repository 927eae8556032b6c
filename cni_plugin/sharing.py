"""What the attachments of one pod have together: its namespace has all their tunnels, whichever of them is looked at.

A pod may be on several networks (by multus, say) whose chains each have this plugin, with tunnels of their own. The
namespace knows no attachments: one set of VIPs, one nf_tables table. So whoever configures it, for whichever
attachment, gives it the tunnels of all; and when one ends, what the others have stays.

Where one of them has `sources` these count for the whole pod: encapsulated packets for another one's VIPs are then
taken from there only, too. Packets are expected by eth0 where it is among them, which matters for label input and
segment sizes.
"""

from __future__ import annotations

from cni_plugin import attachment
from cni_plugin.tunnel import FIRST_INTERFACE, NOTHING, PodTunnels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_plugin.attachment import Attachment

    Key = tuple[str, str, str]

_ROUNDS = 8
"""Looks at the others before somebody is believed to write records without end."""


def others(run_dir: str, key: Key, inode: int) -> list[Attachment]:
    """The other attachments of the same container in the same namespace that have tunnels, in a fixed order.

    `key`: network, container, interface. What cannot be read has none; what is ending keeps none.
    """
    try:
        keys = {owner for name in attachment.files(run_dir) if (owner := attachment.owner(name))}
    except OSError:
        return []
    found: list[Attachment] = []
    for other in sorted(keys):
        if other[1] == key[1] and other != key:
            try:
                known = attachment.read(run_dir, *other)
            except (OSError, ValueError):
                continue
            if known and known.inode == inode and known.tunnels.tunnels and known.state != attachment.ENDING:
                found.append(known)
    return found


def together(interface: str, own: PodTunnels, with_: list[Attachment]) -> tuple[str, PodTunnels]:
    """All tunnels of the pod, and the interface by which its packets are expected; `own` are those of `interface`."""
    if not with_:
        return interface, own
    interfaces = [other.interface for other in with_] + ([interface] if own.tunnels else [])
    tunnels, sources = list(own.tunnels), set(own.sources)
    for other in with_:
        tunnels += other.tunnels.tunnels
        sources.update(other.tunnels.sources)
    whole = PodTunnels(tuple(dict.fromkeys(tunnels)), tuple(sorted(sources)))
    return FIRST_INTERFACE if FIRST_INTERFACE in interfaces else min(interfaces), whole


def configure(
    run_dir: str,
    key: Key,
    path: str,
    inode: int,
    wanted: PodTunnels,
    had: PodTunnels = NOTHING,
    warn: Callable[[str], None] | None = None,
) -> list[str]:
    """Brings the pod to what this attachment is to have and the others have; the changes in words.

    Raises `pod.PodError`. When records of the others change meanwhile, it is done again: each says in its record
    what it is about to put into the pod before it looks at the others, so of two at once one sees both.
    """
    from cni_plugin import pod

    done: list[str] = []
    interface, whole = together(key[2], wanted, others(run_dir, key, inode))
    for _ in range(_ROUNDS):
        done += pod.configure(path, interface, whole, had, inode, warn)
        before = interface, whole
        interface, whole = together(key[2], wanted, others(run_dir, key, inode))
        if (interface, whole) == before:
            break
        warn = None  # it has been said
    return done


def missing(run_dir: str, key: Key, path: str, inode: int, has: PodTunnels) -> list[str]:
    """What is not as the attachments of this pod have it, in words. Raises `pod.PodError`."""
    from cni_plugin import pod

    interface, whole = together(key[2], has, others(run_dir, key, inode))
    return pod.missing(path, interface, whole, inode)
