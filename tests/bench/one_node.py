"""A node of a large cluster with the real helper, as a process of its own: says how long the kernel took to follow.

The helper's source is fed with objects as informers feed it from an API server, without the server; all else is the
helper as it runs, its router is a namespace, and what is measured ends with the kernel's own notice of the change.
Run in a network and mount namespace of its own: `python -m tests.bench.one_node SERVICES REMOVALS IDLE FLOOD`,
the last two in seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import structlog

from cni_plugin.netlink import Socket, rtnl
from cni_plugin.netns import entered
from node_helper.backends import Backend
from node_helper.bucket_store import FolderBucketStore
from node_helper.daemon import Daemon
from node_helper.kernel.router import Router
from node_helper.model import Problem, Snapshot
from node_helper.settings import INGRESS, Settings
from node_helper.sources.kubernetes import ObjectCopy
from node_helper.vips import VipRules, vip_range

ENDPOINTS = 5
BUCKETS = 256
NODE, ADDRESS = "node5", "192.0.2.6"
ROUTER = "/run/netns/service-tunnel"
LOOKS = 10
"""Removals that judge a flood; their Services take no other part in it."""
LIMIT = 60.0
"""Seconds to wait for one change."""
_NEXTHOP_GROUP, _ROUTE_GROUP = 32, 7


class Fed(Backend):
    """A source that is told of objects one by one."""

    name = "in this process"

    def __init__(self, tables: Path) -> None:
        self.store = FolderBucketStore(tables)
        self._copy = ObjectCopy()
        self._lock = threading.Lock()
        self._notice = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def put(self, kind: str, plain: dict[str, Any]) -> None:
        with self._lock:
            self._copy.put(kind, plain)
        os.eventfd_write(self._notice, 1)

    def fileno(self) -> int:
        return self._notice

    def drain(self) -> bool:
        try:
            return os.eventfd_read(self._notice) > 0
        except BlockingIOError:
            return False

    def read(self) -> Snapshot:
        with self._lock:
            return self._copy.snapshot([])

    def tell(self, problems: Iterable[Problem], snapshot: Snapshot) -> None:
        pass

    def close(self) -> None:
        os.close(self._notice)


def vip(service: int) -> str:
    return str(ip_address("198.18.0.0") + service)


def address(service: int, endpoint: int) -> str:
    return str(ip_address("10.0.0.0") + 64 * service + endpoint)


def service_of(number: int) -> dict[str, Any]:
    name = f"service{number}"
    return {
        "metadata": {
            "namespace": f"namespace{number % 50}",
            "name": name,
            "uid": f"5ca1ab1e-0000-4000-8000-{number:012}",
            "creationTimestamp": "2030-01-01T00:00:00Z",
            "annotations": {"cmd.nu/tunnel": vip(number)},
        },
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }


def slice_of(number: int, endpoints: Iterable[int]) -> dict[str, Any]:
    name, namespace = f"service{number}", f"namespace{number % 50}"
    return {
        "metadata": {"namespace": namespace, "name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": [address(number, n)],
                "nodeName": f"node{n}",
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": f"{name}-{n}"},
            }
            for n in endpoints
        ],
    }


class Listener:
    """The kernel's notices of the router's namespace, each with the time at which it was read."""

    def __init__(self, *groups: int) -> None:
        with entered(ROUTER):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        self._socket.bind((0, 0))
        for group in groups:
            self._socket.setsockopt(270, 1, group)
        self._socket.settimeout(LIMIT)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def until(self, kind: int, part: bytes, count: int = 1) -> float:
        """The time at which so many messages of a type with these bytes in them have come."""
        while count:
            message = self._socket.recv(1 << 16)
            count -= int.from_bytes(message[4:6], sys.byteorder) == kind and part in message
        return time.monotonic()


class World:
    """The helper with everything programmed."""

    def __init__(self, services: int, folder: Path, endpoints: int = ENDPOINTS, buckets: int = BUCKETS) -> None:
        """`endpoints` of each Service, 63 at most."""
        self.services = services
        self._endpoints = endpoints
        self._buckets = buckets
        self.source = Fed(folder / "tables")
        for number in range(services):
            self.source.put("Service", service_of(number))
            self.source.put("EndpointSlice", slice_of(number, range(self._endpoints)))
        for number in range(max(endpoints, ENDPOINTS) + 1):
            self.source.put(
                "Node",
                {
                    "metadata": {"name": f"node{number}"},
                    "status": {"addresses": [{"type": "InternalIP", "address": f"192.0.2.{number + 1}"}]},
                },
            )
        settings = Settings(
            node=NODE,
            manifests=folder,
            roles=frozenset([INGRESS]),
            ingress_selector=(),
            socket=folder / "helper.sock",
            run_dir=folder / "run",
            state_dir=folder / "state",
            buckets=buckets,
            vip_rules=VipRules((vip_range("198.18.0.0/15"),)),
        )
        self._settings = settings
        self._end: Callable[[], None] = lambda: None
        self._daemon: Daemon | None = None
        self._thread = threading.Thread(target=self._run)
        self.began = time.monotonic()

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        daemon = self._daemon = Daemon(self._settings, self.source)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler = lambda *_: None  # type: ignore[method-assign]  # not the main thread

        def end() -> None:
            loop.call_soon_threadsafe(daemon._stop.set)

        self._end = end
        await daemon.run()

    def start(self) -> float:
        """Seconds until the last VIP has its route, which comes after all else."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as host:
            host.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)
            host.bind((0, 0))
            host.setsockopt(270, 1, _ROUTE_GROUP)
            host.settimeout(LIMIT)
            self.began = time.monotonic()
            self._thread.start()
            left = {ip_address(vip(number)).packed for number in range(self.services)}
            while left:
                message = host.recv(1 << 16)
                # rtm_dst_len, and RTA_DST as the first attribute
                if message[17] == 32 and int.from_bytes(message[4:6], sys.byteorder) == rtnl.NEW_ROUTE:
                    left -= {message[start : start + 4] for start in range(32, len(message) - 3, 4)}
            return time.monotonic() - self.began

    def stop(self) -> None:
        """Ends the helper, and takes its router away: the kernel alone takes long for that, while others wait."""
        self._end()
        self._thread.join()
        with Socket() as host:
            Router().remove(host)

    def compared(self) -> float:
        """How many full comparisons have ended."""
        assert self._daemon is not None
        return float(self._daemon._metrics.syncs.labels("full")._value.get())

    def put(self, number: int, endpoints: Iterable[int]) -> float:
        plain = slice_of(number, endpoints)
        began = time.monotonic()
        self.source.put("EndpointSlice", plain)
        return began

    def removal(self, number: int) -> float:
        """Seconds until the kernel has no way to an endpoint any more: its nexthop goes after its buckets moved."""
        with Listener(_NEXTHOP_GROUP) as listener:
            began = self.put(number, range(1, self._endpoints))
            return listener.until(rtnl.DEL_NEXTHOP, ip_address(address(number, 0)).packed) - began

    def addition(self, number: int) -> float:
        """Seconds until a newcomer has its share of the buckets, which a stored table gives it."""
        with Listener(_NEXTHOP_GROUP, _ROUTE_GROUP) as listener:
            began = self.put(number, range(self._endpoints))
            part = ip_address(vip(number)).packed
            return listener.until(rtnl.NEW_ROUTE, part, self._buckets // self._endpoints) - began

    def flood(self, seconds: float, rate: int = 100) -> list[float]:
        """What removals take, spread over so many seconds of so many changes a second, the last at the end."""
        begin = time.monotonic()
        looks: list[float] = []
        rest = self.services - LOOKS
        for count in range(int(seconds * rate)):
            number = LOOKS + count % rest
            gone = count // rest % 2 == 0
            time.sleep(max(0.0, begin + count / rate - time.monotonic()))
            self.put(number, range(1 if gone else 0, self._endpoints))
            if (count + 1) / (seconds * rate) >= (len(looks) + 1) / LOOKS:
                looks.append(self.removal(len(looks)))
        return looks


def memory() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def processor_seconds() -> float:
    """Of this process and of the programs that it ran."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main(services: int, changes: int, idle: float, flood: float) -> dict[str, list[float]]:
    folder = Path("/run/bench")
    folder.mkdir(parents=True)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    world = World(services, folder)
    found: dict[str, list[float]] = {"start-up": [world.start()]}
    time.sleep(1.5)
    found["removal"], found["addition"] = [], []
    for number in range(changes):
        found["removal"].append(world.removal(number % services))
        time.sleep(0.05)
    time.sleep(1.1)  # A table is written once a second.
    for number in range(min(changes, services)):
        found["addition"].append(world.addition(number % services))
        time.sleep(0.05)
    if idle > 1:
        # The first full comparison after a change reads all routes anew: that is the change's, not the idling's.
        compared = world.compared()
        while world.compared() == compared:
            time.sleep(0.5)
    before, began = processor_seconds(), time.monotonic()
    time.sleep(idle)
    found["idle-cpu"] = [100 * (processor_seconds() - before) / (time.monotonic() - began)]
    found["flood"] = world.flood(flood)
    found["memory"] = [memory()]
    world.stop()
    return found


if __name__ == "__main__":
    json.dump(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])), sys.stdout)
