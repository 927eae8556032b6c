"""A pod's side of the tunnels: reads its netns, plans, applies. Used by the plugin and by the helper."""

from __future__ import annotations

from cni_plugin.netlink import Socket, nftables
from cni_plugin.netns import entered
from cni_plugin.pod.apply import OperationFailed, apply
from cni_plugin.pod.plan import Operation, left_out, plan
from cni_plugin.pod.state import NoInterface, read
from cni_plugin.pod.target import PodState, Unsupported
from cni_plugin.tunnel import MPLS, NOTHING, PodTunnels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class PodError(Exception):
    """A pod could not be configured: what was attempted, and why it failed."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def configure(
    netns_path: str,
    interface: str,
    wanted: PodTunnels,
    had: PodTunnels = NOTHING,
    inode: int = 0,
    warn: Callable[[str], None] | None = None,
) -> list[str]:
    """Brings a pod to what is wanted; returns the changes in words, none when all was so already.

    `had`: what the attachment's record says of it, which counts where the namespace itself no longer tells
    what in it is ours. `inode`: the namespace's; another one at the path is not touched. 0: whichever is there.
    `warn` is told of what is wanted and cannot be had in this pod, and is left out.
    On failure nothing of ours is left in a pod that had nothing of ours before; in one that had, what
    could be done stays, and the next call goes on from there. Raises PodError.
    """
    try:
        with entered(netns_path, inode), Socket() as route, nftables.open_socket() as netfilter:
            state = read(route, netfilter, interface, _labelled(wanted), _hands_on(wanted) or _hands_on(had))
            operations = plan(wanted, state, had)
            try:
                apply(operations, route, netfilter)
            except OperationFailed:
                if not (state.ruleset or state.links or state.our_rules or state.our_routes or state.label_routed):
                    _undo(state, interface, route, netfilter)
                raise
            if warn:
                for words in left_out(wanted, state):
                    warn(words)
            return [operation.what for operation in operations]
    except (OSError, NoInterface, Unsupported) as error:
        raise PodError(f"cannot configure the pod in {netns_path}", _reason(error)) from error


def _reason(error: Exception) -> str:
    """What went wrong, with the file that it went wrong with, where it is one."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _undo(before: PodState, interface: str, route: Socket, netfilter: Socket) -> None:
    """Takes out what was put into a pod that had nothing; what refuses to go does not keep the rest."""
    try:
        operations = plan(NOTHING, read(route, netfilter, interface))
    except OSError:
        return  # The failure that led here is the one to be told.
    for name, value in before.sysctls.items():
        operations.append(Operation("sysctl", f"set net.{name.replace('/', '.')} back", (name, value)))
    for operation in operations:
        try:
            apply([operation], route, netfilter)
        except OperationFailed:
            pass  # The first failure is the one to be told.


def _labelled(wanted: PodTunnels) -> bool:
    return any(tunnel.mode == MPLS for tunnel in wanted.tunnels)


def _hands_on(wanted: PodTunnels) -> bool:
    return any(tunnel.hand_ons or tunnel.peers for tunnel in wanted.tunnels)


def missing(netns_path: str, interface: str, wanted: PodTunnels, inode: int = 0) -> list[str]:
    """What of ours is not as it should be, each difference in words. Raises PodError.

    Empty when the pod has what is wanted. What its owner may change is not told: other addresses, rules,
    tables, routes; nor that our reply routes do not follow his default routes yet, which the helper sees to.
    """
    try:
        with entered(netns_path, inode), Socket() as route, nftables.open_socket() as netfilter:
            operations = plan(wanted, read(route, netfilter, interface, _labelled(wanted), _hands_on(wanted)))
            return [found.difference for found in operations if found.difference and not found.follows]
    except (OSError, NoInterface, Unsupported) as error:
        raise PodError(f"cannot look into the pod in {netns_path}", _reason(error)) from error


def clear(netns_path: str, interface: str, had: PodTunnels = NOTHING, inode: int = 0) -> None:
    """Takes everything of ours out of a pod; `had` and `inode` as in `configure`. Raises PodError."""
    configure(netns_path, interface, NOTHING, had, inode)


__all__ = ["Operation", "PodError", "PodState", "clear", "configure", "missing", "plan"]
