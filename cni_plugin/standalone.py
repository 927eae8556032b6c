"""Tunnels without a helper: those the chain entry lists, and those the pod's own annotations ask for.

Both count: the chain entry's are for every pod of the network, the annotations' for the one pod. What is
wrong here fails ADD with code 7, since there is nobody else to tell the user.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from cni_plugin.config import MODE_ANNOTATION, VIPS_ANNOTATION
from cni_plugin.errors import ConfigInvalid
from cni_plugin.tunnel import MODES, VXLAN_GPE, PodTunnels, Tunnel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_plugin.config import NetConf

# By bytes of the address: the leading bits, how many they are, what such addresses are.
_UNUSABLE = {
    4: (
        (0, 8, "unspecified"),
        (127, 8, "loopback"),
        (0xA9FE, 16, "link-local"),
        (0xE, 4, "multicast"),
        (0xF, 4, "reserved"),
    ),
    16: (
        (0, 128, "unspecified"),
        (1, 128, "loopback"),
        (0xFFFF, 96, "an IPv4 address in IPv6 form"),
        (0xFF, 8, "multicast"),
        (0xFE80 >> 6, 10, "link-local"),
    ),
}


def tunnels_of(conf: NetConf) -> PodTunnels | None:
    """The standalone tunnels, None where there are none; raises ConfigInvalid naming the wrong member."""
    tunnels = [
        _tunnel(entry.get("vips"), entry.get("mode", VXLAN_GPE), f"tunnels[{index}]")
        for index, entry in enumerate(conf.tunnels)
    ]
    annotation = conf.pod_annotations.get(VIPS_ANNOTATION)
    if annotation is not None:
        listed = [vip.strip() for vip in annotation.split(",")]
        mode = conf.pod_annotations.get(MODE_ANNOTATION, VXLAN_GPE).strip()
        tunnels.append(_tunnel(listed, mode, f"the pod's annotation {VIPS_ANNOTATION}"))
    seen: set[str] = set()
    for tunnel in tunnels:
        twice = seen.intersection(tunnel.vips)
        if twice:
            raise ConfigInvalid(f"{', '.join(sorted(twice))}: a pod has a VIP in one tunnel only, name it once")
        seen.update(tunnel.vips)
    return PodTunnels(tuple(tunnels)) if tunnels else None


def _tunnel(vips: object, mode: object, where: str) -> Tunnel:
    if not isinstance(vips, list) or not vips:
        raise ConfigInvalid(f"{where}: vips must be a list of one or more addresses")
    if mode not in MODES:
        raise ConfigInvalid(f"{where}: mode {mode!r} is not one of {', '.join(MODES)}")
    # A repeated address within one list means nothing else than the address.
    return Tunnel(tuple(dict.fromkeys([_vip(vip, where) for vip in vips])), str(mode))


def _vip(text: object, where: str) -> str:
    """The address in canonical form; refuses what can never be routed to a pod."""
    if isinstance(text, str):
        for family in (AF_INET, AF_INET6):
            try:
                packed = inet_pton(family, text)
            except (OSError, ValueError):
                continue
            if _unusable(packed):
                raise ConfigInvalid(f"{where}: {text} cannot be a VIP: it is {_unusable(packed)}")
            return inet_ntop(family, packed)
    raise ConfigInvalid(f"{where}: {text!r} is no IP address")


def _unusable(packed: bytes) -> str:
    """What kind of address keeps it from being a VIP, or ""."""
    bits = 8 * len(packed)
    number = int.from_bytes(packed, "big")
    for prefix, length, kind in _UNUSABLE[len(packed)]:
        if number >> (bits - length) == prefix:
            return kind
    return ""
