"""What an attachment put into a pod's network namespace, taken out again when the attachment ends.

The record says what that may be, and which namespace it was: a path, such as one below /proc, may lead to
another pod's by the time of DEL or GC. Only pods with tunnels come here.
"""

from __future__ import annotations

from cni_plugin import attachment, netns
from cni_plugin.tunnel import NOTHING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_plugin.attachment import Attachment
    from cni_plugin.tunnel import PodTunnels


def clear(run_dir: str, key: tuple[str, str, str], known: Attachment | None, path: str) -> list[str]:
    """Clears the namespace at `path` of attachment `key` (network, container, interface); returns what went wrong.

    `known`: the attachment's record; without one all that bears our marks goes. Nothing is done where there is
    no such namespace any more, and where another attachment of the same pod has its tunnels in it.
    """
    try:
        inode = netns.of_pod(path)[1]
    except netns.NoPodNetns as error:
        own = netns.identity(netns.OWN)
        if known is not None and own is not None and netns.identity(path) == (own[0], known.inode):
            return [str(error)]  # it is there, and we are kept from it
        return []  # it went with the pod, or what is there now is somebody else's
    if (known is not None and known.inode != inode) or _shared(run_dir, key, inode):
        return []
    try:
        _take_out(path, key[2], NOTHING if known is None else known.tunnels)
    except Exception as error:  # DEL must succeed, whatever a dying namespace answers
        return [f"{path}: {type(error).__name__}: {error} ({getattr(error, 'details', '')})"]
    return []


def _take_out(path: str, interface: str, had: PodTunnels) -> None:
    from cni_plugin import pod

    try:
        pod.clear(path, interface, had)
    except pod.PodError as error:
        if not isinstance(error.__cause__, LookupError):
            raise
        pod.clear(path, "lo", had)  # the interface has gone before, what is ours has not


def _shared(run_dir: str, key: tuple[str, str, str], inode: int) -> bool:
    """Whether another interface of the pod has tunnels in the namespace: there they are one with ours."""
    try:
        keys = {found for name in attachment.files(run_dir) if (found := attachment.owner(name))}
    except OSError:
        return False
    for other in keys:
        if other[1] == key[1] and other != key:
            try:
                known = attachment.read(run_dir, *other)
            except (OSError, ValueError):
                continue
            if known is not None and known.inode == inode and known.tunnels.tunnels:
                return True
    return False
