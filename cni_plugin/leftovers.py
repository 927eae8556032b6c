"""What an attachment put into a pod's network namespace, taken out again when the attachment ends.

The record says what that may be, and which namespace it was: a path, such as one below /proc, may lead to
another pod's by the time of DEL or GC. Only pods with tunnels come here.
"""

from __future__ import annotations

from cni_plugin import netns, sharing
from cni_plugin.tunnel import NOTHING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_plugin.attachment import Attachment
    from cni_plugin.sharing import Key
    from cni_plugin.tunnel import PodTunnels


def clear(run_dir: str, key: Key, known: Attachment | None, path: str) -> list[str]:
    """Clears the namespace at `path` of attachment `key`; returns what went wrong.

    `known`: the attachment's record; without one all that bears our marks goes. What other attachments of the same pod
    have stays. Nothing is done where there is no such namespace any more.
    """
    try:
        inode = netns.of_pod(path)[1]
    except netns.NoPodNetns as error:
        own = netns.identity(netns.OWN)
        if known is not None and own is not None and netns.identity(path) == (own[0], known.inode):
            return [str(error)]  # it is there, and we are kept from it
        return []  # it went with the pod, or what is there now is somebody else's
    if known is not None and known.inode != inode:
        return []
    try:
        _take_out(run_dir, key, path, inode, NOTHING if known is None else known.tunnels)
    except Exception as error:  # DEL must succeed, whatever a dying namespace answers
        if isinstance(error.__cause__, netns.NetnsReplaced):
            return []  # it went with the pod just now
        return [f"{path}: {type(error).__name__}: {error} ({getattr(error, 'details', '')})"]
    return []


def _take_out(run_dir: str, key: Key, path: str, inode: int, had: PodTunnels) -> None:
    from cni_plugin import pod

    try:
        sharing.configure(run_dir, key, path, inode, NOTHING, had)
    except pod.PodError as error:
        if not isinstance(error.__cause__, LookupError) or sharing.others(run_dir, key, inode):
            raise
        pod.clear(path, "lo", had, inode)  # the interface has gone before, what is ours has not
