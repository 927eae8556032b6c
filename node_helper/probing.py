"""Probes: connections of this node to the VIPs that it serves, which tell whether any endpoint answers from here."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Iterator

from node_helper.metrics import Metrics
from node_helper.plan.probes import Aim, Answers, Due, aim
from node_helper.plan.state import VipBuckets
from node_helper.reconcile import Round
from node_helper.services import TunnelService

_PATIENCE = 1.0
"""Seconds for an answer."""
_AT_ONCE = 64
"""Connections under way."""
_LOOK = 1.0
"""Seconds after which VIPs that have come or gone are noticed, at most."""
_NO_PORT = 9
"""Of a Service without ports: `discard`. A refusal is an answer, too."""
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
_ANSWERS = (errno.ECONNREFUSED, errno.ECONNRESET)


class Prober:
    """Probes for as long as its task runs."""

    def __init__(
        self,
        interval: float,
        seed: int,
        last_round: Callable[[], Round | None],
        changed: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        """`changed` is called when `silent` is another than before."""
        self._seed = seed
        self._round = last_round
        self._changed = changed
        self._metrics = metrics
        self._answers = Answers(interval)
        self._aims: dict[str, tuple[tuple[VipBuckets, TunnelService, str], Aim | None]] = {}
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._probes: set[asyncio.Task[None]] = set()
        self._known: tuple[Round | None, dict[str, TunnelService]] = None, {}
        """A round and what is served by it."""
        self.silent: frozenset[str] = frozenset()
        """VIPs that had answered, and of which no endpoint does any more."""

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                found, services = self._served()
                for due in self._answers.due(services, loop.time()):
                    assert found is not None
                    task = loop.create_task(self._probe(due, found, services[due.vip]))
                    self._probes.add(task)
                    task.add_done_callback(self._probes.discard)
                self._look()
                next_at = self._answers.next_at()
                await asyncio.sleep(_LOOK if next_at is None else min(_LOOK, max(0.01, next_at - loop.time())))
        finally:
            for task in self._probes:
                task.cancel()

    def _served(self) -> tuple[Round | None, dict[str, TunnelService]]:
        found = self._round()
        if found is not self._known[0]:
            services = dict(_by_vip(found)) if found is not None else {}
            for vip in self._aims.keys() - services.keys():
                del self._aims[vip]
            self._known = found, services
        return self._known

    async def _probe(self, due: Due, found: Round, service: TunnelService) -> None:
        way = self._aim(due.vip, found, service)
        outcomes: list[bool | None] = [None]
        if way is not None:
            ports = way.source_ports if due.all_endpoints else [way.source_ports[due.turn % len(way.source_ports)]]
            outcomes = await asyncio.gather(*[self._connect(way, port) for port in ports])
        answered = True if True in outcomes else None if None in outcomes else False
        self._metrics.probes.labels({True: "answered", False: "silent", None: "not made"}[answered]).inc()
        self._answers.note(due.vip, answered, asyncio.get_running_loop().time())
        self._look()

    async def _connect(self, way: Aim, source_port: int) -> bool | None:
        async with self._gate:
            return await connects(way.source, source_port, way.vip, way.port)

    def _look(self) -> None:
        silent = self._answers.silent
        if silent != self.silent:
            self.silent = silent
            self._changed()

    def _aim(self, vip: str, found: Round, service: TunnelService) -> Aim | None:
        """Computed once for the same buckets: some hundred hashes."""
        assert found.router is not None
        ways, source = found.router.vips.get(vip), found.facts.address(6 if ":" in vip else 4)
        if ways is None or not source:
            return None
        known = self._aims.get(vip)
        if known is None or known[0][0] is not ways or known[0][1:] != (service, source):
            port = min(service.ports, key=lambda port: port.protocol != "tcp").port if service.ports else _NO_PORT
            found_aim = aim(vip, port, source, ways, self._seed, service.affinity)
            known = self._aims[vip] = (ways, service, source), found_aim
        return known[1]


def _by_vip(found: Round) -> Iterator[tuple[str, TunnelService]]:
    if found.router is None:
        return
    for service in found.services:
        for vip in map(str, service.vips):
            if vip in found.host.served:
                yield vip, service


async def connects(source: str, source_port: int, address: str, port: int) -> bool | None:
    """Whether anybody answered a connection, and be it with a refusal; None where it could not be tried.

    It is reset as soon as it stands, as checks of load balancers are.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        try:
            probe.bind((source, source_port))
            async with asyncio.timeout(_PATIENCE):
                await asyncio.get_running_loop().sock_connect(probe, (address, port))
        except TimeoutError:
            return False
        except OSError as error:
            return True if error.errno in _ANSWERS else False if error.errno == errno.EHOSTUNREACH else None
    return True
