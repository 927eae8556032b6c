"""The helper's cycle: something changed -> snapshot -> plan -> apply; and again, for what was missed.

One thread runs the event loop and answers asks from what the last cycle found; one more, and only that
one, talks to the kernel. Ending the daemon changes nothing in the kernel: traffic goes on, and the next
helper takes over what it finds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog
from inotify_simple import INotify, flags

from cni_plugin import attachment
from cni_plugin.helper_client import NONE, TUNNELS, UNKNOWN
from cni_plugin.tunnel import FIRST_INTERFACE, PodTunnels, to_plain
from node_helper import questions
from node_helper.asks import AskServer
from node_helper.backends import Backend, backend
from node_helper.claim import Claim
from node_helper.health import Health
from node_helper.http_server import HttpServer
from node_helper.log_limits import LineLimit
from node_helper.metrics import Metrics
from node_helper.plan.attachments import bears_tunnels, find_pod, pod_tunnels
from node_helper.private_folder import make_private
from node_helper.probing import Prober
from node_helper.problem_history import ProblemHistory
from node_helper.reconcile import Reconciler, Round
from node_helper.round_metrics import follow
from node_helper.service_manager import ServiceManager
from node_helper.settings import NODE, Settings, draining_mark
from node_helper.status import status
from node_helper.tracing import trace

_SETTLE = 0.005
"""Seconds to wait after a change for the next: an editor or kubectl writes several files."""
_PAUSE = 0.03
"""Seconds from one cycle's end to the next one's begin, at least: a flood of changes is taken in gulps."""
_FULL_PAUSE = 1.0
"""Seconds from one full comparison to the next that a notice of the kernel asks for: another tool may not give up."""
_CATCH_UP = 1.0
"""Seconds for which a new pod without tunnels waits for changes that are being worked on; a cycle takes less."""
_RETRY = 2.0
"""Seconds after a cycle that failed."""
_log = structlog.get_logger()


class Daemon:
    """Owns the event loop's side: triggers, asks, timers, the end."""

    def __init__(self, settings: Settings, source: Backend | None = None) -> None:
        """`source`: instead of the backend that the settings name."""
        self._settings = settings
        self._metrics = Metrics()
        follow(self._metrics, lambda: self._round)
        self._manager = ServiceManager()
        self._health: Health | None = None
        self._backend = source or backend(settings)
        self._reconciler: Reconciler | None = None
        self._round: Round | None = None
        self._history = ProblemHistory()
        self._lines = LineLimit()
        self._routes_unsaid = 0
        self._kernel = ThreadPoolExecutor(1, "kernel")
        self._trouble = ""
        """The last failure, so that one that lasts is told once."""
        self._failed: tuple[str, float] | None = None
        """What the last cycle that failed said, and when."""
        self._wake = asyncio.Event()
        self._full = True
        self._last_end = self._last_full = self._next_full = 0.0
        """Times of the loop."""
        self._arrived: float | None = None
        """When the first change came that no cycle has taken up yet."""
        self._taken_in: float | None = None
        """The same of the changes that the present cycle works on; None where there is none."""
        self._prober: Prober | None = None
        self._round_over = asyncio.Event()
        """Set at the end of the present cycle, or the next; each has its own."""
        self._stop = asyncio.Event()
        self._started = time.time()

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises AnotherHelper, SocketTaken, OSError at the start only."""
        with Claim(self._settings.roles):
            await self._run()

    async def _run(self) -> None:
        settings = self._settings
        loop = asyncio.get_running_loop()
        for folder in (settings.run_dir, settings.state_dir):
            make_private(folder)
        make_private(Path(attachment.directory(str(settings.run_dir))), ours_alone=True)
        server = AskServer(
            settings.socket,
            {"tunnels": self._tunnels, "status": self._status, "trace": self._trace, "drain": self._drain},
            long=["status"],
        )
        await server.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._everything)
        health = self._health = Health(loop)
        http = None
        if settings.metrics:
            probes = {"/healthz": health.trouble, "/readyz": health.unreadiness}
            http = HttpServer(*settings.metrics, self._metrics.registry, probes)
        store = self._backend.store
        self._reconciler = await loop.run_in_executor(self._kernel, Reconciler, settings, store, self._metrics)
        watches = self._watch(loop)
        _log.info("started", node=settings.node, roles=sorted(settings.roles), source=self._backend.name)
        self._manager.ready()
        tasks = [loop.create_task(self._signs_of_life(health))]
        if settings.probe_interval:
            self._prober = Prober(
                settings.probe_interval, settings.seed, lambda: self._round, self._wake.set, self._metrics
            )
            tasks.append(loop.create_task(self._prober.run()))
        try:
            await self._cycle()
        finally:
            self._manager.stopping()
            for task in tasks:
                task.cancel()
            if http is not None:
                http.close()
            for watch in watches:
                watch()
            await server.stop()
            self._kernel.shutdown()
            self._reconciler.close()
            self._backend.close()
            _log.info("stopped; the kernel's state stays, traffic goes on")

    def _watch(self, loop: asyncio.AbstractEventLoop) -> list[Callable[[], None]]:
        """Everything whose change wakes the cycle; returns what ends the watching."""
        backend = self._backend

        def edited() -> None:
            backend.drain()
            if self._arrived is None:
                self._arrived = loop.time()
            self._wake.set()

        loop.add_reader(backend.fileno(), edited)
        changes = INotify(nonblocking=True)
        watched = flags.CREATE | flags.MOVED_TO | flags.DELETE
        changes.add_watch(attachment.directory(str(self._settings.run_dir)), watched)
        if tables := backend.tables_folder:
            with contextlib.suppress(OSError):  # A folder that cannot be written has no tables to follow.
                tables.mkdir(parents=True, exist_ok=True)
                changes.add_watch(tables, watched)

        def changed() -> None:
            # Names that begin with a dot are not finished.
            if any(not event.name.startswith(".") for event in changes.read(timeout=0)):
                self._wake.set()

        loop.add_reader(changes.fileno(), changed)
        assert self._reconciler is not None
        news = self._reconciler.news

        def told() -> None:
            anything, tampered = news.drain()
            if tampered:
                self._next_full = min(self._next_full, max(loop.time(), self._last_full + _FULL_PAUSE))
            if anything:
                self._wake.set()

        loop.add_reader(news.fileno(), told)
        return [
            lambda: loop.remove_reader(news.fileno()),
            lambda: loop.remove_reader(backend.fileno()),
            lambda: loop.remove_reader(changes.fileno()),
            changes.close,
        ]

    def _everything(self) -> None:
        if self._reconciler is not None:
            self._reconciler.news.doubt_router()
        self._full = True
        self._wake.set()

    async def _signs_of_life(self, health: Health) -> None:
        """Tells the service manager, where it waits for that, that this loop turns and the kernel's thread gets on."""
        while self._manager.watchdog is not None:
            if not health.kernel_trouble():
                self._manager.alive()
            await asyncio.sleep(self._manager.watchdog)

    async def _cycle(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            self._wake.clear()
            if loop.time() >= self._next_full:
                self._full = True
            full, self._full = self._full, False
            if full:
                self._last_full = loop.time()
                # Jitter keeps the nodes of a cluster from comparing all at the same moment.
                pause = self._settings.resync * random.uniform(0.8, 1.2)  # noqa: S311 - not a secret
                self._next_full = self._last_full + pause
            wait = await self._once(full)
            self._taken_in = None
            self._round_over.set()
            self._round_over = asyncio.Event()
            self._last_end = loop.time()
            until = max(0.0, self._next_full - loop.time())
            await self._sleep(until if wait is None else min(wait, until))

    async def _once(self, full: bool) -> float | None:
        """One cycle; returns the seconds after which the next is due in any case."""
        loop = asyncio.get_running_loop()
        assert self._reconciler is not None and self._health is not None
        started = loop.time()
        arrived, self._arrived = self._arrived, None
        self._taken_in = arrived
        try:
            snapshot = self._backend.read()
            if snapshot is None:
                self._full = full
                self._waiting_for(self._backend.trouble())
                return None  # What the backend has read first wakes the cycle.
            with self._health.working():
                silent = self._prober.silent if self._prober is not None else frozenset()
                result = await loop.run_in_executor(self._kernel, self._reconciler.reconcile, snapshot, full, silent)
        except Exception as error:
            return self._again(error)
        self._trouble = ""
        self._round = result
        self._metrics.syncs.labels("full" if full else "change").inc()
        self._metrics.sync_seconds.observe(loop.time() - started)
        if arrived is not None:
            self._metrics.convergence_seconds.observe(loop.time() - arrived)
        self._metrics.last_success.set_to_current_time()
        self._health.synced = True
        self._tell(result)
        return result.again_in

    def _again(self, error: Exception) -> float:
        """After a cycle that failed: told, counted, and everything is compared in so many seconds."""
        # What the kernel refused of single objects is in the round's problems; an OSError is the ground itself. All
        # else is a fault of ours, over an object as nobody thought of, which must not end the helper for all others.
        ours = not isinstance(error, OSError)
        words = repr(error) if ours else str(error)
        self._metrics.sync_failures.inc()
        self._metrics.errors.labels("CycleFailed").inc()
        self._manager.status(f"failed, trying again: {words}")
        if words != self._trouble:
            tell = _log.exception if ours else _log.error
            tell("the node could not be brought to the wanted state; trying again", error=words)
        self._trouble = words
        self._failed = words, time.time()
        self._full = True
        return _RETRY

    def _waiting_for(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            _log.warning("waiting for the first look at all objects", source=self._backend.name, error=trouble)
        self._trouble = trouble

    async def _sleep(self, seconds: float) -> None:
        stop, wake = asyncio.create_task(self._stop.wait()), asyncio.create_task(self._wake.wait())
        await asyncio.wait({stop, wake}, timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)
        if wake.done() and not self._stop.is_set():
            now = asyncio.get_running_loop().time()
            await asyncio.wait({stop}, timeout=max(_SETTLE, self._last_end + _PAUSE - now))
        for task in (stop, wake):
            task.cancel()

    def _tell(self, result: Round) -> None:
        """Logs what is new; what stands is in `status` and the metrics."""
        news = self._history.note(result.problems)
        for problem, unsaid in news.say_came:
            more = {"times_before": unsaid} if unsaid else {}
            _log.warning(problem.message, reason=problem.reason, kind=problem.kind, object=str(problem.key), **more)
        for problem in news.say_passed:
            _log.info("no longer so: " + problem.message, reason=problem.reason)
        self._backend.tell(news.came, result.snapshot)
        for name, operations in sorted(result.pods_changed.items()):
            if self._lines.allows(("pod", name)):
                _log.info("pod configured", pod=name, operations=operations)
        self._routes_unsaid += result.route_changes
        if (result.route_changes or result.served_changed) and self._lines.allows("router"):
            _log.info("router changed", routes=self._routes_unsaid, vips=len(result.host.served))
            self._routes_unsaid = 0
        metrics = self._metrics
        for problem in news.came:
            metrics.errors.labels(problem.reason).inc()
        metrics.route_changes.inc(result.route_changes)
        metrics.bucket_moves.inc(result.bucket_moves)
        metrics.table_writes.inc(result.table_writes)
        metrics.problems.clear()
        for problem in frozenset(result.problems):
            metrics.problems.labels(problem.reason).inc()
        served = f"{len(result.host.served)} VIPs" if result.ingress else "no ingress node"
        self._manager.status(f"{len(result.services)} Services, {served}, {len(result.problems)} problems")

    # --- the socket's questions ---------------------------------------------------------------------------

    async def _tunnels(self, question: dict[str, Any]) -> dict[str, Any]:
        """A new pod's tunnels; the host is ready for its replies before it gets the answer."""
        began = time.perf_counter()
        kind, wanted = await self._tunnels_of(question)
        self._metrics.asks.labels(kind).inc()
        self._metrics.ask_seconds.labels(kind).observe(time.perf_counter() - began)
        return {"answer": kind} if wanted is None else {"answer": kind, "pod": to_plain(wanted)}

    async def _tunnels_of(self, question: dict[str, Any]) -> tuple[str, PodTunnels | None]:
        result = self._round
        if result is None or NODE not in self._settings.roles:
            return UNKNOWN, None
        asked = questions.new_pod(question)
        if not self._bears_tunnels(asked):
            return NONE, None
        namespace, name = asked.namespace, asked.name
        found = find_pod(result.snapshot, namespace, name)
        if found is None:
            # The runtime may be ahead of the cycle: look at the source once more.
            found = find_pod(self._backend.read() or result.snapshot, namespace, name)
        if found is None:
            # In a namespace with tunnels it pays to wait for the pod to appear; elsewhere it would only delay.
            tunnelled = any(service.key.namespace == namespace for service in result.services)
            return UNKNOWN if tunnelled else NONE, None
        wanted = pod_tunnels(result.index, result.snapshot, found, result.handovers)
        if not wanted.tunnels and await self._caught_up():
            # A Service that was annotated just before has been heard of, but is in no round yet.
            assert self._round is not None
            result = self._round
            found = find_pod(result.snapshot, namespace, name) or found
            wanted = pod_tunnels(result.index, result.snapshot, found, result.handovers)
        if not wanted.tunnels:
            return NONE, None
        assert self._reconciler is not None
        expect = self._reconciler.expect_replies
        await asyncio.get_running_loop().run_in_executor(self._kernel, expect, asked.addresses)
        return TUNNELS, wanted

    async def _caught_up(self) -> bool:
        """Waits, a moment at most, until what the source has told is in the last round; whether it was not yet."""
        if self._arrived is None and self._taken_in is None:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP):
                if self._taken_in is not None:
                    await self._round_over.wait()
                if self._arrived is not None:
                    await self._round_over.wait()
        return True

    def _bears_tunnels(self, asked: questions.NewPod) -> bool:
        if asked.interface in ("", FIRST_INTERFACE):
            return True  # as nearly always, and then no folder is read
        names = [name.split(":") for name in attachment.files(str(self._settings.run_dir))]
        return bears_tunnels(asked.container, asked.interface, {(name[1], name[2]) for name in names if len(name) == 3})

    async def _status(self, question: dict[str, Any]) -> dict[str, Any]:
        chosen, uptime = questions.patterns(question), time.time() - self._started
        # In a thread: of thousands of Services it takes a tenth of a second, in which pods would wait.
        found = await asyncio.to_thread(
            status, self._settings, self._round, uptime, self._history.times(), self._failed, chosen
        )
        return {"status": found}

    async def _trace(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._round is None:
            raise LookupError("the helper has not read all Services yet")
        flow = questions.flow(question)
        result, settings = self._round, self._settings
        if not result.ingress:
            raise LookupError(f"{settings.node} is no ingress node: ask the helper of one")
        answer = trace(
            flow, result.services, result.tables, result.facts, settings.node, settings.buckets, settings.seed
        )
        return {"trace": answer}

    async def _drain(self, question: dict[str, Any]) -> dict[str, Any]:
        mark = draining_mark(self._settings.state_dir)
        if question.get("draining"):
            mark.touch()
        else:
            mark.unlink(missing_ok=True)
        self._wake.set()
        return {"draining": mark.exists()}
