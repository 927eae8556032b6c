"""Takes everything of this project off a node, without a running helper: `service-tunnel-helper cleanup`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cni_plugin import attachment, netns, pod
from node_helper.kernel.host import Host
from node_helper.kernel.places import PLACES
from node_helper.kernel.router import Router
from node_helper.settings import draining_mark


def clean(run_dir: Path, state_dir: Path, say: Callable[[str], None]) -> list[str]:
    """Removes router, host state, tunnels of this node's pods, own files; returns what could not be removed.

    Attachment records stay: they are the plugin's, which is still in the chain of running pods.
    """
    failures: list[str] = []

    @contextmanager
    def step(what: str) -> Iterator[None]:
        """What of it fails is told by name, and keeps nothing else from going."""
        say(what)
        try:
            yield
        except OSError as error:
            failures.append(f"{what}: {error}")

    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    host = Host(run_dir)
    try:
        for what, remove in host.removals():
            with step(what):
                remove()
        with step("the router's namespace and its link"):
            for place in PLACES:
                Router(place).remove(host.route)
    finally:
        host.close()
    records, unreadable = attachment.read_all(str(run_dir))
    failures += unreadable
    for record in records:
        found = netns.identity(record.netns)
        if not record.tunnels.tunnels or found is None or found[1] != record.inode:
            continue
        say(f"tunnels of pod {record.namespace}/{record.name}")
        try:
            pod.clear(record.netns, record.interface, record.tunnels, record.inode)
            attachment.write(str(run_dir), record.replace(tunnels=record.tunnels.replace(tunnels=(), sources=())))
        except (pod.PodError, OSError) as error:
            failures.append(f"pod {record.namespace}/{record.name}: {error}")
    for file in (state_dir / "tunnelled-namespaces", draining_mark(state_dir)):
        file.unlink(missing_ok=True)
    return failures
