"""What a node is like around us, and what follows from it: facts in, findings out, nothing touched.

What must be tried is tried (`preflight`); here is what can only be judged by looks: other firewalls, the pod network's
habits, systemd-networkd, MTUs. Each judgement is a row of `CHECKS` with a pure function, so that it can be tested with
facts that no machine at hand has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cni_plugin.tunnel import MODES, VXLAN_GPE, overhead

LEAST_KERNEL = (5, 3)
"""The first with nexthop objects."""
LEAST_MTU = 1280
"""Bytes: what IPv6 needs of every link (RFC 8200)."""


class Device(NamedTuple):
    name: str
    mtu: int
    """Bytes."""
    up: bool = True


class ForwardChain(NamedTuple):
    """A chain of nf_tables that sees forwarded packets."""

    family: str
    table: str
    name: str
    policy: str
    """`accept` or `drop`."""
    refuses: bool = False
    """Its last rule drops or rejects whatever comes that far."""


@dataclass(frozen=True, slots=True)
class Survey:
    """A node's facts."""

    kernel: str = ""
    """As uname says: `6.12.48+deb13-cloud-amd64`."""
    rp_filter: Mapping[str, int] = field(default_factory=dict)
    """By device, with `all` and `default`."""
    devices: tuple[Device, ...] = ()
    uplink: str = ""
    """The device of the default route; empty without one."""
    chains: tuple[ForwardChain, ...] | None = ()
    """None: nf_tables could not be looked at."""
    networkd: Mapping[str, str] | None = None
    """Settings of systemd-networkd's section [Network]; None: it does not run."""
    cni: frozenset[str] = frozenset()
    """Types of the plugins in the CNI configuration."""


class Verdict(NamedTuple):
    says: str
    """What is so, and the way out."""
    lacking: bool = False
    """It will not work like this; otherwise it is worth knowing."""


class Check(NamedTuple):
    name: str
    """For `--json`."""
    what: str
    judge: Callable[[Survey, Collection[str]], Iterator[Verdict]]
    """From the facts and the modes in question; nothing: all is well."""


def _kernel(survey: Survey, _: Collection[str]) -> Iterator[Verdict]:
    numbers = survey.kernel.split("-")[0].split("+")[0].split(".")
    known = tuple(int(number) for number in numbers[:2] if number.isdigit())
    if len(known) == 2 and known < LEAST_KERNEL:
        yield Verdict(f"Linux {survey.kernel} has no nexthop objects: 5.3 is the least", lacking=True)


def _reverse_path(survey: Survey, _: Collection[str]) -> Iterator[Verdict]:
    every = survey.rp_filter.get("all", 0)
    own = survey.rp_filter.get(survey.uplink, 0)
    if survey.uplink and max(every, own) == 1:
        yield Verdict(
            f"{survey.uplink} takes packets strictly by the way back (rp_filter 1): replies of pods on other nodes "
            f"that come in there are dropped. The helper loosens only devices towards pods. Where replies pass this "
            f"node: sysctl -w net.ipv4.conf.{survey.uplink}.rp_filter=2"
        )


_TOWARDS_PODS = (
    "veth",
    "cali",
    "lxc",
    "cni",
    "kube-bridge",
    "flannel.",
    "vxlan.calico",
    "cilium_vxlan",
    "weave",
    "tunl",
)
"""How devices on the way to pods are called, by the plugins that make them."""


def _mtu(survey: Survey, modes: Collection[str]) -> Iterator[Verdict]:
    ways = [device for device in survey.devices if device.up and device.name.startswith(_TOWARDS_PODS)]
    uplink = next((device for device in survey.devices if device.name == survey.uplink), None)
    if not ways:
        return
    least = min(ways, key=lambda device: device.mtu)
    for mode in modes:
        room = least.mtu - overhead(mode, 4)
        if room < LEAST_MTU:
            yield Verdict(
                f"mode {mode} leaves {room} bytes of the {least.mtu} of {least.name}, and IPv6 needs {LEAST_MTU}: "
                f"raise the MTU of the pod network to {LEAST_MTU + overhead(mode, 4)} at least",
                lacking=True,
            )
        elif uplink is not None and room < uplink.mtu:
            yield Verdict(
                f"mode {mode} leaves {room} bytes of the {least.mtu} of {least.name}, and {uplink.name} takes in "
                f"{uplink.mtu}: larger packets are answered with frag-needed or packet-too-big, so let ICMP through to "
                f"clients; or raise the MTU of the pod network to {uplink.mtu + overhead(mode, 4)}"
            )


_OURS = {("ip", "filter", "FORWARD"), ("ip6", "filter", "FORWARD")}
"""The chains of iptables, in which an ACCEPT of ours comes first."""


def _firewalls(survey: Survey, _: Collection[str]) -> Iterator[Verdict]:
    if survey.chains is None:
        yield Verdict("nf_tables cannot be looked at: install nft to have other firewalls' chains named")
        return
    for chain in survey.chains:
        if (chain.family, chain.table, chain.name) in _OURS or not (chain.policy == "drop" or chain.refuses):
            continue
        path = f"{chain.family} {chain.table} {chain.name}"
        if chain.table == "firewalld":
            # What a zone accepts it accepts of what comes in by it; what goes out by it is a policy's matter.
            policy = "firewall-cmd --permanent --policy=to-tunnels"
            way_out = (
                "firewall-cmd --permanent --zone=trusted --add-interface=svctun, the same for the devices of pods; "
                f"firewall-cmd --permanent --new-policy=to-tunnels; {policy} --add-ingress-zone=ANY; "
                f"{policy} --add-egress-zone=trusted; {policy} --set-target=ACCEPT; and firewall-cmd --reload"
            )
        else:
            way_out = f'nft insert rule {path} iifname "svctun" accept, the same with oifname, and for what pods send'
        yield Verdict(
            f"the chain {path} of nf_tables drops what it does not know, and an ACCEPT of iptables does not overrule "
            f"it: unless its rules let tunnels and replies pass, {way_out}"
        )


_FOREIGN = ("ManageForeignRoutes", "ManageForeignRoutingPolicyRules")
_NO = {"no", "false", "0", "off"}


def _networkd(survey: Survey, _: Collection[str]) -> Iterator[Verdict]:
    if survey.networkd is None:
        return
    managed = [key for key in _FOREIGN if survey.networkd.get(key, "yes").lower() not in _NO]
    if managed:
        lines = "".join(f"\\n{key}=no" for key in managed)
        yield Verdict(
            "systemd-networkd deletes routes and rules of others when it starts, VIP routes among them, until the "
            f"helper's next look: printf '[Network]{lines}\\n' > /etc/systemd/networkd.conf.d/foreign.conf, and "
            "restart it"
        )


class _PodNetwork(NamedTuple):
    """How to know a pod network, and what is peculiar about it."""

    name: str
    devices: tuple[str, ...]
    """Beginnings of names."""
    types: frozenset[str]
    habits: tuple[tuple[str, frozenset[str]], ...]
    """Sentences, each with the modes that it concerns."""

    def is_here(self, survey: Survey) -> bool:
        return not survey.cni.isdisjoint(self.types) or any(
            device.name.startswith(self.devices) for device in survey.devices
        )


_ALL = frozenset(MODES)
_POD_NETWORKS = (
    _PodNetwork(
        "Cilium",
        ("cilium_", "lxc"),
        frozenset({"cilium-cni"}),
        (
            ("drops GRE and MPLS between its devices; UDP passes: use mode vxlan-gpe", _ALL - {VXLAN_GPE}),
            (
                "lets pods send from their own addresses only, and replies have the VIP: they need to be let out "
                "(enable-source-ip-verification: false)",
                _ALL,
            ),
            (
                "sees outer packets: a policy that restricts who may reach a pod must let the ingress nodes in, UDP "
                "4790 in mode vxlan-gpe",
                _ALL,
            ),
        ),
    ),
    _PodNetwork(
        "Calico",
        ("cali", "tunl0", "vxlan.calico"),
        frozenset({"calico"}),
        (
            (
                "drops what a pod sends from an address not its own: set workloadSourceSpoofing to Any in the "
                "FelixConfiguration, and the annotation cni.projectcalico.org/allowedSourcePrefixes with the VIPs on "
                "pods",
                _ALL,
            ),
            (
                "sets rp_filter of its devices to 1 now and then; the helper sets it back at its next full comparison",
                _ALL,
            ),
        ),
    ),
    _PodNetwork(
        "flannel",
        ("flannel.",),
        frozenset({"flannel"}),
        (
            (
                "reaches other nodes' pods by an overlay: outer packets come from the address of flannel.1 (the helper "
                "takes it from the route), and pods' MTU must leave room for both encapsulations",
                _ALL,
            ),
        ),
    ),
    _PodNetwork(
        "kube-router",
        ("kube-bridge", "kube-dummy-if"),
        frozenset({"kube-router"}),
        (
            (
                "filters pods that a network policy selects by connection, and replies belong to none that it saw: "
                "allow the clients in the policy's egress",
                _ALL,
            ),
        ),
    ),
    _PodNetwork(
        "Weave Net",
        ("weave", "vethwe"),
        frozenset({"weave-net"}),
        (("masquerades what pods send out unless told not to: replies must keep the VIP as source", _ALL),),
    ),
)


def _pod_network(survey: Survey, modes: Collection[str]) -> Iterator[Verdict]:
    for network in _POD_NETWORKS:
        if network.is_here(survey):
            for sentence, concerned in network.habits:
                if not concerned.isdisjoint(modes):
                    yield Verdict(f"{network.name} {sentence}")


CHECKS = (
    Check("kernel", "the kernel's age", _kernel),
    Check("reverse-path", "reverse-path filters where replies come in", _reverse_path),
    Check("mtu", "room for the encapsulation on the way to pods (MTU)", _mtu),
    Check("firewalls", "other firewalls' chains for forwarded packets", _firewalls),
    Check("networkd", "systemd-networkd and routes of others", _networkd),
    Check("pod-network", "the pod network's own habits", _pod_network),
)
