"""Makes the router's namespace and keeps it: `service-tunnel-helper keep-namespace`.

And an empty one for a second router, which takes the traffic while the first is built anew (`renewal`).

A namespace has its name by a mount. One that a container makes below /run/netns is gone with that container, unless its
mounts are passed on to the node, which takes a privileged container. So that the helper need not be one, this is a
program of its own that does nothing else; the namespaces stay when it ends, and so does the traffic.
"""

from __future__ import annotations

from collections.abc import Callable

from node_helper.kernel.commands import CommandFailed
from node_helper.kernel.places import PLACES
from node_helper.kernel.router import Router


def keep(say: Callable[[str], None], wait: Callable[[], bool]) -> None:
    """Makes the namespaces whenever they are missing, until `wait`, which takes a while, returns False.

    Raises CommandFailed when one cannot be made at the beginning; later that is said, and tried again.
    """
    told: dict[str, str] = {}
    while True:
        for place in PLACES:
            router = Router(place)
            first = router.path not in told
            try:
                made, trouble = router.make(), ""
            except (CommandFailed, OSError) as error:
                if first:
                    raise CommandFailed(error.errno or 5, str(error.strerror or error)) from None
                made, trouble = False, str(error.strerror or error)
            if made:
                say(f"{router.path} is made")
            elif first:
                say(f"{router.path} is there")
            if trouble != told.setdefault(router.path, ""):
                say(trouble or f"{router.path} is there again")
                told[router.path] = trouble
        if not wait():
            return


def is_kept() -> bool:
    """Whether the namespaces are there: for a probe."""
    return all(Router(place).exists() for place in PLACES)


def wait_until_left(ask: Callable[[], dict[str, object]], wait: Callable[[], bool], looks: int) -> str:
    """Waits while this node is leaving the ingress role; returns what it came to, in words.

    A helper that ends does not end its node's announcement. Where it ends because the node is no ingress node any more,
    it has to stay until that is done. `ask`: the helper's status; `looks`: how many of them may show a node that stays,
    since the helper hears of its labels in the next moment only. `wait` returns False when there is no time left.
    """
    while True:
        status = ask()
        if not status.get("synced") or not status["ingress"]:
            return "this node is no ingress node"
        nodes = status["nodes"]
        assert isinstance(nodes, list)
        if any(node["name"] == status["node"] and node["ingress"] for node in nodes):
            looks -= 1
            if looks <= 0:
                return "this node stays an ingress node"
        if not wait():
            return "this node is still leaving"
