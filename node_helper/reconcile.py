"""One cycle on the kernel: the steps from a snapshot to the node's state, in the order that keeps traffic whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cni_plugin.netlink import NetlinkError
from cni_plugin.tunnel import MPLS
from node_helper import renewal
from node_helper.bucket_store import BucketStore, FolderBucketStore
from node_helper.buckets import BucketTable
from node_helper.ingress_part import IngressPart
from node_helper.kernel.facts import FactsReader
from node_helper.kernel.host import Host
from node_helper.kernel.modules import MplsModules
from node_helper.kernel.notices import News
from node_helper.kernel.places import SECOND
from node_helper.kernel.router import Router
from node_helper.metrics import Metrics
from node_helper.model import Node, ObjectKey, Problem, Snapshot
from node_helper.plan.attachments import tunnel_sources
from node_helper.plan.changes import RouterChanges, after, router_changes
from node_helper.plan.handovers import HandoverPlanner, Handovers
from node_helper.plan.ingress import IngressPlanner, all_vips
from node_helper.plan.state import HostFacts, HostWanted, RouterPresent, RouterWanted, Senders
from node_helper.pods import PodKeeper, PodRound
from node_helper.service_index import ServiceIndex
from node_helper.services import Resolver, TunnelService
from node_helper.settings import INGRESS, NODE, Settings, draining_mark
from node_helper.tables import TableKeeper, TableReader, TableRound

_UNKNOWN_NODE = (
    "there is no Node {0}, so nobody knows whether it is an ingress node: add its Node object, name the right one with "
    "--node, or make it one in any case with --ingress-selector ''"
)
_CHAINS = "our iptables chains could not be looked at or put right, which is tried again soon: {0}"
_AGAIN = 2.0
"""Seconds until what may succeed by itself is tried again."""
_OF_DISKS = frozenset({"StateNotWritten", "RecordNotWritten"})
"""Reasons that go once there is room, of which nobody tells."""
_FORGERIES = (
    "pods of {0} may pretend to be a node, and send other pods packets as if from any client: {1}; a kernel with "
    "NF_TABLES_BRIDGE and NFT_FIB_INET lets us see to it (modprobe nf_tables nft_fib_inet)"
)
_NOTES = "what was changed on this node is not noted, and would not be put back should the helper end before it is: {0}"
_QUOTES = (
    "a pod whose UDP answer over IPv6 is sent in fragments may not hear that they are too big for the client's path: "
    "{0}; a kernel with NF_TABLES_INET lets us see to it (modprobe nf_tables)"
)

WHOLE_EVERY = 4
"""Full comparisons of which one looks at every route of the router without any doubt about it: listing hundreds of
thousands is what a full comparison costs."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one cycle found and did; asks, `status` and `trace` are answered from the last one."""

    snapshot: Snapshot
    services: tuple[TunnelService, ...]
    index: ServiceIndex
    tables: Mapping[ObjectKey, BucketTable]
    facts: HostFacts
    host: HostWanted
    problems: tuple[Problem, ...]
    ingress: bool
    draining: str
    """Why this node announces no VIP, in words; empty where it does."""
    router: RouterWanted | None = None
    """None where this is no ingress node."""
    handovers: Handovers = field(default_factory=dict)
    pods_changed: Mapping[str, list[str]] = field(default_factory=dict)
    attachments: int = 0
    route_changes: int = 0
    bucket_moves: int = 0
    routes: int = 0
    """Of bucket tables, in the kernel now."""
    served_changed: bool = False
    table_writes: int = 0
    again_in: float | None = None


class Reconciler:
    """Made and used in the one thread that talks to the kernel."""

    def __init__(self, settings: Settings, store: BucketStore, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self.news = News()
        """What the kernel tells of changes that others made; the event loop waits for it."""
        self._host = Host(settings.run_dir, self.news)
        self._router = Router(news=self.news, kept=settings.namespace_kept)
        self._second = Router(SECOND, kept=settings.namespace_kept)
        """Where traffic goes while the first is built anew."""
        self.news.follow_host(self._host.route)
        self._facts = FactsReader(self._host.route)
        self._modules = MplsModules()
        self._part = IngressPart(settings)
        self._resolver = Resolver(settings.vip_rules, settings.mode)
        self._index = ServiceIndex()
        self._planner = IngressPlanner(settings.node, settings.buckets, settings.seed)
        self._tables = TableKeeper(
            store, FolderBucketStore(settings.state_dir), settings.buckets, drain_time=settings.drain_time
        )
        self._stored = TableReader(store)
        self._handovers = HandoverPlanner(settings.node)
        self._pods = PodKeeper(settings.run_dir, settings.results)
        self._present: RouterPresent | None = None
        self._ground: object = None
        self._comparisons = 0
        self._served: Mapping[str, tuple[int, int]] = {}
        self._nodes: Mapping[str, Node] = {}
        self._senders = Senders()

    def close(self) -> None:
        self._router.close()
        self._second.close()
        self._facts.close()
        self._host.close()
        self.news.close()

    def reconcile(self, snapshot: Snapshot, full: bool, silent: frozenset[str] = frozenset()) -> Round:
        """Brings this node to what the snapshot wants; with `full` everything is compared with the kernel.

        `silent`: VIPs of which no endpoint answers from here.
        What concerns single objects becomes a Problem of the result; raises OSError (NetlinkError,
        CommandFailed) when the ground itself cannot be laid.
        """
        settings = self._settings
        resolution = self._resolver.resolve(snapshot)
        index = self._index = self._index.updated(resolution.services)
        # Other nodes do not see the endpoints, and once is enough to tell of a Service.
        problems = [*snapshot.problems, *(resolution.problems if INGRESS in settings.roles else ())]
        node = snapshot.nodes.get(settings.node)
        labels = any(service.mode == MPLS for service in resolution.services)
        if labels:
            self._modules.load(full)
        drained = draining_mark(settings.state_dir).exists()
        part = self._part.play(node, drained, INGRESS in settings.roles and self._router.stands())
        ingress = part.forwards
        pods = PodRound()
        handovers: Handovers = {}
        local = self._handovers.local(resolution.services, index, snapshot.pods) if NODE in settings.roles else {}
        if ingress:
            tables = self._tables.look(resolution.services, snapshot)
        else:
            tables = TableRound(self._stored.read([s for s in resolution.services if s.key in local]))
        if INGRESS in settings.roles and settings.ingress_selector and node is None:
            problems.append(self._problem("UnknownNode", _UNKNOWN_NODE.format(settings.node)))
        services = resolution.services
        if tables.resting:
            services = tuple([tables.resting.get(service.key, service) for service in services])
        if NODE in settings.roles:
            try:
                self._note_namespaces(resolution.services)
            except OSError as error:
                problems.append(self._problem("StateNotWritten", f"{settings.state_dir} cannot be written: {error}"))
            # Before the router sends by the same tables: a pod that is told too late ends connections.
            handovers = self._handovers.plan(services, tables.tables, local)
            pods = self._pods.look(resolution.services, index, snapshot, handovers, settings.node, full)
        endpoints = self._planner.endpoints(services) if ingress else frozenset()
        facts = self._facts.read(node, endpoints | pods.tunnelled_ips, self.news.take(), full)
        router: RouterWanted | None = None
        if ingress:
            router, host, more = self._planner.plan(services, tables.tables, facts, bool(part.silent), silent)
            problems += more
        else:
            host = HostWanted(vips=all_vips(resolution.services))
        replies = {facts.paths[address].device for address in pods.tunnelled_ips if address in facts.paths}
        host = replace(host, loose=host.loose | replies, senders=self._senders_of(snapshot.nodes, labels))
        forgeries = self._host.refuse_forgeries(host, full)
        problems += [self._problem("ForgeriesPass", _FORGERIES.format(settings.node, error)) for error in forgeries]
        changes, refused = self._apply(router, host, facts, full)
        trouble = self._host.chain_trouble or (self._router.chain_trouble if ingress else "")
        if trouble:
            problems.append(self._problem("ChainsNotSet", _CHAINS.format(trouble)))
        if ingress and self._router.quote_trouble:
            problems.append(self._problem("QuotesStay", _QUOTES.format(self._router.quote_trouble)))
        unwritten = self._host.try_notes_again()
        if unwritten:
            problems.append(self._problem("StateNotWritten", _NOTES.format(unwritten)))
        problems += [self._problem("KernelRefused", str(error)) for error in refused]
        self._metrics.kernel_refusals.inc(len(refused))
        served_changed = dict(self._served) != dict(host.served)
        self._served = host.served
        again = bool(trouble) or any(problem.reason in _OF_DISKS for problem in (*problems, *pods.problems))
        return Round(
            snapshot=snapshot,
            services=services,
            index=index,
            tables=tables.tables,
            facts=facts,
            router=router,
            host=host,
            problems=tuple(sorted({*problems, *tables.problems, *pods.problems})),
            ingress=ingress,
            draining=part.silent,
            handovers=handovers,
            pods_changed=pods.changed,
            attachments=pods.attachments,
            route_changes=changes.route_count(),
            bucket_moves=changes.moves,
            routes=0 if self._present is None else sum(len(routes) for routes, _ in self._present.vips.values()),
            served_changed=served_changed,
            table_writes=tables.written,
            again_in=min(
                [wait for wait in (tables.again_in, _AGAIN if again else None, part.ends_in) if wait],
                default=None,
            ),
        )

    def expect_replies(self, addresses: Iterable[str]) -> None:
        """Makes the host let replies of a new pod in (see `Host.loosen_towards`)."""
        for address in addresses:
            self._host.loosen_towards(address)

    def _problem(self, reason: str, message: str) -> Problem:
        return Problem("Node", ObjectKey("", self._settings.node), reason, message)

    def _senders_of(self, nodes: Mapping[str, Node], labels: bool) -> Senders:
        if nodes != self._nodes:  # quick where they are the same objects
            self._nodes, self._senders = nodes, Senders(frozenset(tunnel_sources(nodes.values())))
        if labels != self._senders.labels:
            self._senders = replace(self._senders, labels=labels)
        return self._senders

    def _apply(
        self, router: RouterWanted | None, host: HostWanted, facts: HostFacts, full: bool
    ) -> tuple[RouterChanges, list[NetlinkError]]:
        """VIP routes go first and come last: a packet never meets a half-made router."""
        if INGRESS not in self._settings.roles:
            # What is an ingress node's belongs to the helper with that role, which may be another process.
            self._host.prepare(host, facts, full)
            self._host.tidy_sets(host, full)
            return RouterChanges(), []
        self._host.withdraw(host, full)
        if router is None:
            for each in (self._router, self._second):
                if each.remains():
                    each.remove(self._host.route)
                    self._host.forget()
            self._present = None
            self._host.prepare(host, facts, full)
            self._host.tidy(host, full)
            return RouterChanges(), []
        if (full or self._present is None) and renewal.is_due(self._router, self._host):
            renewal.renew(self._router, self._second, self._host, router, host, facts)
            self._present, full = None, True
        ground = (router.addresses, router.by_address, router.ip_versions, router.buckets, router.tunnels)
        troubled = self._present is None or bool(self._router.chain_trouble)
        if full or ground != self._ground or troubled or not self._router.exists():
            self._ground = None
            lost = self._router.ensure(self._host.route, router, full)
            if lost:
                self._host.forget()
            if lost or self._present is None or (full and not self._is_as_read()):
                self._present = self._router.read(router.buckets)
            self._ground = ground
        self._host.prepare(host, facts, full)
        assert self._present is not None
        changes = router_changes(router, self._present)
        refused = self._router.apply(changes)
        # After a refusal nobody knows; the next cycle reads.
        self._present = None if refused else after(changes, self._present)
        if self._router.hashes:
            refused += self._host.serve(host, facts)
        self._host.tidy(host, full)
        return changes, refused

    def _is_as_read(self) -> bool:
        """Whether the router is as it was read: each route of it where there is a doubt, else every fourth time.

        The kernel has told of every change, and says so when it could not; this is for what nobody thought of.
        """
        self._comparisons += 1
        doubted = self.news.take_router_doubt()
        try:
            return self._router.is_as_read(whole=doubted or self._comparisons % WHOLE_EVERY == 0)
        except OSError:
            self.news.doubt_router()
            raise

    def _note_namespaces(self, services: Iterable[TunnelService]) -> None:
        """Tells the plugin for the times without helper in which namespaces pods have tunnels."""
        file = self._settings.state_dir / "tunnelled-namespaces"
        text = "".join(f"{name}\n" for name in sorted({service.key.namespace for service in services}))
        try:
            if file.read_text() == text:
                return
        except OSError:
            pass  # Not there yet.
        temporary = file.with_name(f".{file.name}")
        temporary.write_text(text)
        temporary.chmod(0o600)  # whatever the umask: the plugin does not believe what others could have written
        temporary.replace(file)
