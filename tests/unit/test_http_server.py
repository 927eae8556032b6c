"""What probes and Prometheus get over HTTP, from a real server on a free port."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest

from node_helper.health import Health
from node_helper.http_server import HttpServer
from node_helper.metrics import Metrics


@contextmanager
def turning() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that turns in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


class Served:
    """A server with a helper's health behind it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str = "127.0.0.1") -> None:
        self.now = 100.0
        self.address = address
        self.health = Health(loop, clock=lambda: self.now, loop_limit=0.2, kernel_limit=120)
        self.metrics = Metrics()
        probes = {"/healthz": self.health.trouble, "/readyz": self.health.unreadiness}
        self.server = HttpServer(address, 0, self.metrics.registry, probes)

    def get(self, path: str) -> tuple[int, str]:
        connection = HTTPConnection(self.address, self.server.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


@pytest.fixture
def served() -> Iterator[Served]:
    with turning() as loop:
        one = Served(loop)
        yield one
        one.server.close()


def test_metrics_are_served_in_prometheus_format(served: Served) -> None:
    served.metrics.asks.labels("none").inc()
    status, text = served.get("/metrics")
    assert status == 200
    assert "# HELP service_tunnel_asks_total Questions of the plugin, by answer." in text
    assert 'service_tunnel_asks_total{answer="none"} 1.0' in text


def test_a_helper_is_healthy_before_it_is_ready(served: Served) -> None:
    assert served.get("/healthz") == (200, "ok\n")
    status, why = served.get("/readyz")
    assert status == 503 and "not yet synced" in why


def test_it_is_ready_after_the_first_full_comparison(served: Served) -> None:
    served.health.synced = True
    assert served.get("/readyz") == (200, "ok\n")


def test_a_cycle_that_hangs_makes_it_ill(served: Served) -> None:
    with served.health.working():
        served.now += 119
        assert served.get("/healthz") == (200, "ok\n")
        served.now += 2
        assert served.get("/healthz") == (503, "one cycle has taken 121 s and is not at its end\n")
    assert served.get("/healthz") == (200, "ok\n")


def test_an_event_loop_that_hangs_makes_it_ill(served: Served) -> None:
    hanging, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        go_on.wait(10)

    served.health._loop.call_soon_threadsafe(hang)
    hanging.wait(10)
    status, why = served.get("/healthz")
    go_on.set()
    assert status == 503 and "the event loop has not turned" in why
    assert served.get("/healthz") == (200, "ok\n")


def test_an_event_loop_that_ended_makes_it_ill() -> None:
    with turning() as loop:
        health = Health(loop)
    assert health.trouble() == "the event loop has ended"


def test_other_paths_are_told_what_there_is(served: Served) -> None:
    assert served.get("/health") == (404, "there are /metrics, /healthz, /readyz\n")


def test_a_client_that_says_nothing_keeps_nobody_waiting(served: Served) -> None:
    with socket.create_connection((served.address, served.server.port)):
        assert served.get("/healthz") == (200, "ok\n")


def test_it_listens_on_ipv6_too() -> None:
    with turning() as loop:
        one = Served(loop, "::1")
        assert one.get("/healthz") == (200, "ok\n")
        one.server.close()


def test_a_port_that_is_taken_is_an_error_at_the_start(served: Served) -> None:
    with pytest.raises(OSError, match="in use"):
        HttpServer(served.address, served.server.port, served.metrics.registry, {})


def test_a_name_server_that_is_gone_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> str:
        raise AssertionError("no name is to be looked up")

    monkeypatch.setattr(socket, "getfqdn", gone)
    with turning() as loop:
        Served(loop).server.close()
