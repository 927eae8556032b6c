"""BIRD, the routing daemon, on the testbed's ingress nodes and its router, or another on the nodes.

Debian's program is unpacked into the cache, not installed: its package would start a routing daemon on this machine.
Nodes run the project's own example, `install/bird/bird.conf`, with their addresses in the place of the example's.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol

from install import debian
from install.cache import made_once
from tests.testbed.cluster import Cluster, Node
from tests.testbed.namespaces import Place, TestbedError

EXAMPLE = Path(__file__).parents[2] / "install" / "bird"
_RELEASE = "bookworm"
_PACKAGES = ("bird2=2.0.12-7", "libssh-gcrypt-4")
_ROUTER_AS = 65000
_TIMES = "bfd; connect delay time 1; connect retry time 1; error wait time 1, 2;"


def program() -> Path:
    """The folder of the unpacked packages. Raises DebianError."""

    def unpack(folder: Path) -> Path:
        debian.unpack_packages(_RELEASE, _PACKAGES, folder / "root")
        return folder / "root"

    return made_once("bird", [debian.architecture(), _RELEASE, *_PACKAGES], unpack, "unpacking BIRD")


class Bird:
    """One BIRD process in a place."""

    def __init__(self, place: Place, configuration: Mapping[str, str]) -> None:
        """`configuration`: files by name, `bird.conf` among them."""
        self._place = place
        self._folder = tempfile.TemporaryDirectory(prefix="svctun-bird-")
        for name, text in configuration.items():
            Path(self._folder.name, name).write_text(text)
        self.start()

    def start(self) -> None:
        root = program()
        libraries = ":".join(str(path) for path in root.glob("usr/lib/*-linux-gnu"))
        self._log = open(Path(self._folder.name, "log"), "a")  # noqa: SIM115 - as long as the process
        self.process = self._place.popen(
            str(root / "usr/sbin/bird"), "-f",
            "-c", f"{self._folder.name}/bird.conf", "-s", f"{self._folder.name}/control",
            env={"LD_LIBRARY_PATH": libraries}, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def log(self) -> str:
        return Path(self._folder.name, "log").read_text()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(10)
        self._log.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self._folder.cleanup()


def node_configuration(node: Node) -> dict[str, str]:
    """The example for a node of the testbed."""
    values = {"NODE4": node.addresses[4], "NODE6": node.addresses[6],
              "ROUTER4": node.gateways[4], "ROUTER6": node.gateways[6]}  # fmt: skip
    text = (EXAMPLE / "bird.conf").read_text()
    for name, value in values.items():
        text, count = re.subn(rf"^define {name} = .*;$", f"define {name} = {value};", text, flags=re.M)
        if count != 1:
            raise TestbedError(f"the example has {count} definitions of {name}")
    return {"bird.conf": text, "service-tunnel.conf": (EXAMPLE / "service-tunnel.conf").read_text()}


def router_configuration(nodes: Iterable[Node]) -> dict[str, str]:
    """A data centre's router: takes what the nodes announce and spreads over equal paths."""
    sessions = [
        f"protocol bgp {node.name}_{v} {{ {_TIMES} local {node.gateways[v]} as {_ROUTER_AS};"
        f" neighbor {node.addresses[v]} as 65010; ipv{v} {{ import all; export none; }}; }}"
        for node in nodes
        for v in (4, 6)
    ]
    kernels = [f"protocol kernel {{ merge paths on; ipv{v} {{ import none; export all; }}; }}" for v in (4, 6)]
    head = [
        "router id 10.1.0.1;",
        "log stderr all;",
        "protocol device { }",
        'protocol bfd { interface "*" { min rx interval 100 ms; min tx interval 100 ms; multiplier 3; }; }',
    ]
    return {"bird.conf": "\n".join([*head, *kernels, *sessions]) + "\n"}


@contextmanager
def dead(host: Place) -> Iterator[None]:
    """The node neither hears nor forwards anything, while its links stay up, as behind a switch."""
    for tool in ("iptables", "ip6tables"):
        host.run(tool, "-w", "-t", "raw", "-I", "PREROUTING", "-j", "DROP")
    try:
        yield
    finally:
        for tool in ("iptables", "ip6tables"):
            host.run(tool, "-w", "-t", "raw", "-D", "PREROUTING", "-j", "DROP")


class Speaker(Protocol):
    """A routing daemon that runs on a node."""

    def log(self) -> str: ...

    def close(self) -> None: ...


def on_node(node: Node) -> Bird:
    return Bird(node.host, node_configuration(node))


class Routing:
    """A routing daemon on all ingress nodes of a cluster and BIRD on its router, in the place of `Cluster.announce`."""

    def __init__(self, cluster: Cluster, start: Callable[[Node], Speaker] = on_node) -> None:
        """`start`: starts a node's daemon."""
        self._cluster = cluster
        nodes = [node for node in cluster.nodes.values() if node.spec.ingress]
        self.nodes: dict[str, Speaker] = {}
        self.router = Bird(cluster.router, router_configuration(nodes))
        try:
            for node in nodes:
                self.nodes[node.name] = start(node)
        except BaseException:
            self.close()
            raise

    def paths(self, vip: str) -> set[str]:
        """Names of the nodes to which the router sends a VIP's packets."""
        version = "-6" if ":" in vip else "-4"
        text = self._cluster.router.run("ip", version, "route", "show", vip, "proto", "bird").stdout
        devices = set(re.findall(r"\bdev (\S+)", text))
        return {node.name for node in self._cluster.nodes.values() if node.device in devices}

    def learned(self) -> set[str]:
        """All destinations that the router has from BGP."""
        found = set()
        for version in ("-4", "-6"):
            text = self._cluster.router.run("ip", version, "route", "show", "proto", "bird").stdout
            found |= {line.split()[0] for line in text.splitlines() if line and not line[0].isspace()}
        return found

    def logs(self) -> str:
        return "\n".join(
            f"--- {name}\n{speaker.log()[-2000:]}" for name, speaker in {**self.nodes, "router": self.router}.items()
        )

    def close(self) -> None:
        for speaker in (*self.nodes.values(), self.router):
            speaker.close()

    def __enter__(self) -> Routing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            error.add_note(self.logs())
        self.close()
