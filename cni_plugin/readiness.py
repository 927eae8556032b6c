"""Whether ADD could work on this node: what STATUS looks at, without changing anything and without the helper.

A runtime asks all the time, so each look is a system call or two. The capabilities are read and not tried: that would
take a namespace. Whether the kernel knows a mode's kind of device is not seen from here (`preflight` tries it).
"""

from __future__ import annotations

import posix
from _socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, socket

from cni_plugin import attachment
from cni_plugin.errors import Unavailable
from cni_plugin.netlink import NetlinkError, nftables

CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}
"""By their numbers: to configure a pod's network, and to enter its namespace."""
SYSCTL = "/proc/sys/net/ipv4/conf/default/rp_filter"
"""One of those that a pod has, too; opened for writing and closed, it stays what it is."""
_STATUS = "/proc/thread-self/status"


def examine(run_dir: str) -> None:
    """Raises Unavailable (code 50), with the first thing that would keep every ADD from working."""
    try:
        attachment.check_room(run_dir)
    except OSError as error:
        raise Unavailable(f"runDir {run_dir} cannot hold attachment records: {error}") from None
    absent = [name for number, name in CAPABILITIES.items() if not _capabilities() >> number & 1]
    if absent:
        raise Unavailable(
            f"the plugin runs without {' and '.join(absent)}", "the container runtime has to run it as root of the node"
        )
    try:
        socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0).close()
    except OSError as error:
        raise Unavailable(f"no netlink socket: {error}", "the plugin configures pods over netlink") from None
    try:
        with nftables.open_socket() as netfilter:
            nftables.table_userdata(netfilter, "svctun")  # there is none here: that is an answer, too
    except NetlinkError as error:
        raise Unavailable(
            f"the kernel has no nf_tables: {error}", "`modprobe nf_tables`; pods with tunnels need it"
        ) from None
    except OSError as error:
        raise Unavailable(f"no netlink socket for nf_tables: {error}", "pods with tunnels need it") from None
    try:
        posix.close(posix.open(SYSCTL, posix.O_WRONLY | posix.O_CLOEXEC))
    except OSError as error:
        raise Unavailable(
            f"{SYSCTL} cannot be written: {error.strerror}",
            "/proc/sys is read-only where the container runtime runs the plugin; it sets sysctls of pods",
        ) from None


def _capabilities() -> int:
    """The effective ones of this thread, as bits; raises Unavailable where /proc does not say."""
    try:
        descriptor = posix.open(_STATUS, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            text = posix.read(descriptor, 1 << 16)
        finally:
            posix.close(descriptor)
        return int(text.partition(b"CapEff:")[2].split()[0], 16)
    except (OSError, ValueError, IndexError) as error:
        raise Unavailable(f"{_STATUS} does not tell the plugin's capabilities: {error}") from None
