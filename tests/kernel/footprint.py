"""What may come to a host by us, and nothing else: docs/architecture.md, "In the host", as regular expressions.

By the names of `pictures.picture`, an expression for each line that may be there and was not before the helper's first
start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CHAINS = (
    r"\*(raw|filter)",
    r":(PREROUTING|OUTPUT|INPUT|FORWARD) ACCEPT",
    r"COMMIT",
    r":SERVICE-TUNNEL(-FORWARD)? -",
    r"-A PREROUTING -j SERVICE-TUNNEL",
    r"-A FORWARD -j SERVICE-TUNNEL-FORWARD",
    r"-A SERVICE-TUNNEL -s \S+ -m set --match-set svctun-vips[46] src -m addrtype --dst-type LOCAL -j RETURN",
    r"-A SERVICE-TUNNEL -[sd] \S+ -m set --match-set svctun-vips[46] (src|dst) -j CT --notrack",
    r"-A SERVICE-TUNNEL -i svctun -j CT --notrack",
    r"-A SERVICE-TUNNEL -m set --match-set svctun-loose src,src -m set ! --match-set svctun-vips4 src"
    r" -m rpfilter --invert -j DROP",
    r"-A SERVICE-TUNNEL-FORWARD -[io] svctun -j ACCEPT",
    r"-A SERVICE-TUNNEL-FORWARD -s \S+ -m set --match-set svctun-vips[46] src -j ACCEPT",
    r"-A SERVICE-TUNNEL(-FORWARD)? -m comment --comment svctun(-[0-9a-f]{8}){2} -j RETURN",
)
_LABELS = (r"16\d\d\d as to 100 via inet 10\.244\.\d\.\d+ dev veth\w+ proto 116 ",)
CHANGED_SYSCTLS = (r"net/ipv4/conf/(veth\w+|eth0)/rp_filter = 2", r"net/mpls/platform_labels = 100000")
"""Those of devices of others, and the one host-wide sysctl, for mode mpls."""
ADDED_SYSCTLS = (r"net/(ipv4|ipv6|mpls)/(conf|neigh)/svctun/.*", r"net/netfilter/.*")
"""Those of our device; and what the kernel shows once its connection tracking is used by anybody on the machine."""


def lines(vips: Iterable[str], *, ingress: bool, labels: bool) -> dict[str, tuple[str, ...]]:
    """What may come to an ingress node or another, while these VIPs are served; `labels`: some in mode mpls."""
    served = "|".join(map(re.escape, vips))
    everywhere: dict[str, tuple[str, ...]] = {
        "sets": (rf"add svctun-vips[46] ({served})", r"add svctun-loose 0\.0\.0\.0/0,(veth\w+|eth0)"),
        "iptables": _CHAINS,
        "tables": (r"table ip6? (raw|filter)", r"table (bridge|inet) svctun"),
    }
    if not ingress:
        return everywhere
    ours = r"169\.254\.74\.1"
    return everywhere | {
        "links": (r"svctun@\S+ +UP .*",),
        "addresses": (rf"svctun@\S+ +UP +{ours}/30 fe80::74:1/64 ",),
        "routes": (
            rf"({served}) via 169\.254\.74\.2 dev svctun proto 116 src 10\.1\.\d\.2 mtu \d+ ",
            rf"169\.254\.74\.0/30 dev svctun proto kernel scope link src {ours} ",
            rf"(local|broadcast) 169\.254\.74\.\d dev svctun table local proto kernel scope (host|link) src {ours} ",
        ),
        "routes6": (
            rf"({served}) via fe80::74:2 dev svctun proto 116 src fd01:0:0:\d::2 metric 1024 mtu \d+ pref medium",
        ),
        "namespaces": ("service-tunnel",),
        **({"labels": _LABELS} if labels else {}),
    }


def not_listed(found: Sequence[str], expressions: Iterable[str]) -> list[str]:
    allowed = list(expressions)
    return [line for line in found if not any(re.fullmatch(expression, line) for expression in allowed)]
