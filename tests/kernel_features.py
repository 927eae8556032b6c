"""What the kernel at hand can do, found by trying it in a network namespace that lives only for that.

Kernels differ: the tunnel modes need GRE, VXLAN-GPE or MPLS, which may be built in, loadable or absent, and only
trying tells. `python -m tests.kernel_features` prints the answer.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess

from cni_plugin.tunnel import GRE, MODES, MPLS, VXLAN_GPE

TRIALS = {
    VXLAN_GPE: "ip link add try-gpe type vxlan external gpe dstport 4790",
    GRE: "ip link add try-gre type gre external",
    MPLS: "modprobe -a -q mpls_router mpls_iptunnel; sysctl -q -w net.mpls.platform_labels=1000"
    " && ip -f mpls route add 100 dev lo && ip route add 198.51.100.1/32 encap mpls 100 dev lo",
    "HMARK": "iptables -w -t mangle -A PREROUTING -j HMARK"
    " --hmark-tuple src,dst,sport,dport --hmark-mod 64 --hmark-offset 1 --hmark-rnd 1",
    "socket match": "iptables -w -t mangle -A PREROUTING -m socket -j RETURN",
    "nexthop objects": "ip nexthop add id 1 dev lo",
    "nf_tables": "nft add table inet try_table",
    "ipset": "ipset create try-set hash:ip && ipset destroy try-set",
}
"""Feature to the shell command that succeeds where it is there; the tunnel modes are features of their own name."""


@functools.cache
def lacking() -> tuple[str, ...]:
    """The features of TRIALS that are not there, in its order; empty where nobody may try (not root)."""
    if os.geteuid() != 0:
        return ()
    tries = "\n".join(f"({trial}) >/dev/null 2>&1 || echo '{feature}'" for feature, trial in TRIALS.items())
    script = f"PATH=$PATH:/usr/sbin:/sbin; ip link set lo up\n{tries}"
    tried = subprocess.run(
        ["unshare", "--net", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return tuple(tried.stdout.splitlines())


def lacking_modes() -> tuple[str, ...]:
    """The tunnel modes that this kernel cannot do."""
    return tuple(mode for mode in MODES if mode in lacking())


def main() -> None:
    """Print the kernel's release and what it has and lacks."""
    missing = lacking()
    print(f"kernel {platform.release()}")
    for feature in TRIALS:
        print(f"  {'lacks' if feature in missing else 'has':6}{feature}")


if __name__ == "__main__":
    main()
