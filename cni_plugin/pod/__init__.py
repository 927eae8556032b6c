"""A pod's side of the tunnels: reads its netns, plans, applies. Used by the plugin and by the helper."""

from __future__ import annotations

from cni_plugin.netlink import NetlinkError, Socket, nftables
from cni_plugin.netns import NetnsError, entered
from cni_plugin.pod.apply import OperationFailed, apply
from cni_plugin.pod.plan import Operation, PodState, Unsupported, plan
from cni_plugin.pod.state import NoInterface, read
from cni_plugin.tunnel import MPLS, NOTHING, PodTunnels


class PodError(Exception):
    """A pod could not be configured: what was attempted, and why it failed."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def configure(netns_path: str, interface: str, wanted: PodTunnels, had: PodTunnels = NOTHING) -> list[str]:
    """Brings a pod to what is wanted; returns the changes in words, none when all was so already.

    `had`: what the attachment's record says of it, which counts where the namespace itself no longer tells
    what in it is ours.
    On failure nothing of ours is left in a pod that had nothing of ours before; in one that had, what
    could be done stays, and the next call goes on from there. Raises PodError.
    """
    try:
        with entered(netns_path), Socket() as route, nftables.open_socket() as netfilter:
            state = read(route, netfilter, interface, _labelled(wanted))
            operations = plan(wanted, state, had)
            try:
                apply(operations, route, netfilter)
            except OperationFailed:
                if not (state.ruleset or state.links or state.our_rules or state.our_routes or state.label_routed):
                    _undo(state, interface, route, netfilter)
                raise
            return [operation.what for operation in operations]
    except (NetnsError, NetlinkError, OperationFailed) as error:
        raise PodError(f"cannot configure the pod in {netns_path}", error.strerror or str(error)) from error
    except (NoInterface, Unsupported) as error:
        raise PodError(f"cannot configure the pod in {netns_path}", str(error)) from error


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


def missing(netns_path: str, interface: str, wanted: PodTunnels) -> list[str]:
    """What of ours is not as it should be, as what `configure` would do about it. Raises PodError.

    Empty when the pod has what is wanted. What its owner may change is not told: other addresses, rules,
    tables, routes; nor that our reply routes do not follow his default routes yet, which the helper sees to.
    """
    try:
        with entered(netns_path), Socket() as route, nftables.open_socket() as netfilter:
            operations = plan(wanted, read(route, netfilter, interface, _labelled(wanted)))
            return [operation.what for operation in operations if not operation.follows]
    except (NetnsError, NetlinkError) as error:
        raise PodError(f"cannot look into the pod in {netns_path}", error.strerror or str(error)) from error
    except (NoInterface, Unsupported) as error:
        raise PodError(f"cannot look into the pod in {netns_path}", str(error)) from error


def clear(netns_path: str, interface: str, had: PodTunnels = NOTHING) -> None:
    """Takes everything of ours out of a pod; `had` as in `configure`. Raises PodError."""
    configure(netns_path, interface, NOTHING, had)


__all__ = ["Operation", "PodError", "PodState", "clear", "configure", "missing", "plan"]
