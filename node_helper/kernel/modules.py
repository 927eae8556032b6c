"""Loading the kernel modules that the kernel does not load by itself.

Devices, nf_tables expressions and xtables extensions bring their modules when they are first used; MPLS
routing does not.
"""

from __future__ import annotations

import contextlib

from cni_plugin.pod.state import read_sysctl
from node_helper.kernel.commands import CommandFailed, run


def load_mpls() -> None:
    """Loads MPLS routing where it is missing; quiet where it cannot be had, which planning tells by Service."""
    if read_sysctl("mpls/platform_labels") is None:
        with contextlib.suppress(CommandFailed):  # No such modules, no modprobe, or no right to load any.
            run(["modprobe", "-a", "mpls_router", "mpls_iptunnel"])


class MplsModules:
    """Asks for MPLS routing once between two full comparisons: where it cannot be had, that does not change."""

    def __init__(self) -> None:
        self._asked = False

    def load(self, full: bool) -> None:
        if full or not self._asked:
            self._asked = True
            load_mpls()
