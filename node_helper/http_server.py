"""The HTTP server of `run --metrics`: metrics for Prometheus, and what an orchestrator's probes ask.

It answers from threads of its own, so that it can say that the rest hangs.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Judge = Callable[[], str]
"""What is wrong, in words; empty: nothing."""
_PATIENCE = 10.0
"""Seconds for a client to say what it wants."""


class HttpServer:
    """Serves `/metrics` and the probes from its start to `close`."""

    def __init__(self, address: str, port: int, registry: CollectorRegistry, probes: dict[str, Judge]) -> None:
        """`probes`: path to judge; port 0: any that is free. Raises OSError when the port is taken."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server_class = type("_Server", (_Server,), {"address_family": family})
        self._server: WSGIServer = make_server(address, port, _application(registry, probes), server_class, _Quiet)
        self.port: int = self._server.server_port
        self._thread = Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without the look-up of the own name that the base class makes: DNS may be gone."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Quiet(WSGIRequestHandler):
    timeout = _PATIENCE

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is no news."""


def _application(registry: CollectorRegistry, probes: dict[str, Judge]) -> WSGIApplication:
    metrics = make_wsgi_app(registry)

    def application(environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environment["PATH_INFO"]
        if path in ("/metrics", "/"):
            return metrics(environment, start_response)  # type: ignore[no-any-return]
        judge = probes.get(path)
        status, text = "404 Not Found", f"there are /metrics, {', '.join(sorted(probes))}"
        if judge is not None:
            trouble = judge()
            status, text = ("503 Service Unavailable", trouble) if trouble else ("200 OK", "ok")
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [text.encode() + b"\n"]

    return application
