"""The command `service-tunnel-helper`: what an operator runs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket as sockets
import sys
import threading
import time
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import click
import structlog

from cni_plugin import __version__
from cni_plugin.pod.state import look_for_sysctls_at
from cni_plugin.tunnel import MODES, VXLAN_GPE
from node_helper.asks import SocketTaken, answers, question
from node_helper.backends import BackendError
from node_helper.claim import AnotherHelper
from node_helper.settings import ROLES, Settings
from node_helper.vips import VipRules, vip_range

_SOCKET = Path("/run/service-tunnel/helper.sock")
_RUN_DIR = Path("/run/service-tunnel")
_STATE_DIR = Path("/var/lib/service-tunnel")

_LOOK_EVERY = 1.0
"""Seconds."""

_socket = click.option(
    "--socket", "socket_path", type=click.Path(path_type=Path), default=_SOCKET, show_default=True,
    envvar="SVC_TUNNEL_SOCKET", help="The helper's Unix socket.",
)  # fmt: skip
_run_dir = click.option(
    "--run-dir", type=click.Path(path_type=Path), default=_RUN_DIR, show_default=True,
    help="What is gone with a reboot: attachment records.",
)  # fmt: skip
_state_dir = click.option(
    "--state-dir", type=click.Path(path_type=Path), default=_STATE_DIR, show_default=True,
    help="What outlives a reboot: bucket tables, namespaces with tunnels.",
)  # fmt: skip


# Each command names the prefix itself: inherited, it would have the command's name in it.
_ENVIRONMENT = {"auto_envvar_prefix": "SVC_TUNNEL"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Brings public IPs straight into pods: the helper that runs on each node."""


def _power_of_two(_: click.Context, __: click.Parameter, value: int) -> int:
    if not 1 <= value <= 4096 or value & (value - 1):
        raise click.BadParameter(f"{value} is not a power of two from 1 to 4096")
    return value


def _selector(_: click.Context, __: click.Parameter, value: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for part in filter(None, value.split(",")):
        name, separator, text = part.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"{part!r} is not label=value")
        pairs.append((name, text))
    return tuple(pairs)


def _roles(_: click.Context, __: click.Parameter, value: str) -> frozenset[str]:
    roles = frozenset(filter(None, value.split(",")))
    if not roles or not roles <= set(ROLES):
        raise click.BadParameter(f"{value!r}: name node, ingress, or node,ingress")
    return roles


def _ranges(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[Any, ...]:
    try:
        return tuple(vip_range(value) for value in values)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _networks(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[Any, ...]:
    try:
        return tuple(ip_network(value) for value in values)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _endpoint(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, int] | None:
    if value is None:
        return None
    address, separator, port = value.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{value!r} is not ADDRESS:PORT")
    return address.strip("[]") or "0.0.0.0", int(port)


@main.command(context_settings=_ENVIRONMENT)
@click.option("--manifests", type=click.Path(path_type=Path),
              help="Folder of Kubernetes YAML to follow, instead of an API server.")  # fmt: skip
@click.option("--kubeconfig", type=click.Path(path_type=Path),
              help="How to reach the API server; without it and --manifests as a pod of the cluster.")  # fmt: skip
@click.option("--node", default=sockets.gethostname, show_default="the host's name", help="This node's name.")
@click.option("--roles", default="node,ingress", show_default=True, callback=_roles, help="node, ingress or both.")
@click.option("--ingress-selector", default="node=tunnel", show_default=True, callback=_selector,
              help="Labels that make a Node an ingress node; empty: always one.")  # fmt: skip
@_socket
@_run_dir
@_state_dir
@click.option("--mode", type=click.Choice(MODES), default=VXLAN_GPE, show_default=True, help="Default encapsulation.")
@click.option("--buckets", type=int, default=256, show_default=True, callback=_power_of_two, help="Buckets per VIP.")
@click.option("--seed", type=click.IntRange(0, 0xFFFFFFFF), default=Settings.__dataclass_fields__["seed"].default,
              show_default=True, help="HMARK's; the same on all ingress nodes.")  # fmt: skip
@click.option("--drain-time", type=click.FloatRange(min=1), default=3600.0, show_default=True,
              help="Seconds for which connections of buckets that moved are handed on to who had them.")  # fmt: skip
@click.option("--resync", type=click.FloatRange(min=0.1), default=30.0, show_default=True,
              help="Seconds between comparisons of everything with the kernel.")  # fmt: skip
@click.option("--probe-interval", type=click.FloatRange(min=0), default=0.0, show_default=True,
              help="Seconds between probes of a VIP through its tunnels, which withdraw it; 0: none.")  # fmt: skip
@click.option("--vip-range", multiple=True, callback=_ranges, metavar="CIDR[=NAMESPACE,…]",
              help="Addresses that may be VIPs, repeatable; none: with --manifests any, else none.")  # fmt: skip
@click.option("--pod-range", multiple=True, callback=_networks, metavar="CIDR", help="Never VIPs.")
@click.option("--service-range", multiple=True, callback=_networks, metavar="CIDR", help="Never VIPs.")
@click.option("--namespace-kept", is_flag=True, help="The router's namespace is made by `keep-namespace`, not here.")
@click.option("--sysctls", type=click.Path(path_type=Path), default=Path("/proc/sys/net"), show_default=True,
              help="Where /proc/sys/net is writable, in a container.")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path), default=Settings.__dataclass_fields__["results"].default,
              show_default=True, help="libcni's cache, from which older pods are taken on.")  # fmt: skip
@click.option("--metrics", callback=_endpoint, metavar="ADDR:PORT", help="Serve Prometheus metrics there.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def run(
    manifests: Path | None, kubeconfig: Path | None, node: str, roles: frozenset[str],
    ingress_selector: tuple[tuple[str, str], ...],
    socket_path: Path, run_dir: Path, state_dir: Path, mode: str, buckets: int, seed: int, drain_time: float,
    resync: float, probe_interval: float,
    vip_range: tuple[Any, ...], pod_range: tuple[Any, ...], service_range: tuple[Any, ...],
    namespace_kept: bool, sysctls: Path, results: Path, metrics: tuple[str, int] | None, log_format: str,
    log_level: str,
) -> None:  # fmt: skip
    """Keep this node as the Services want it, until told to stop."""
    from node_helper.daemon import Daemon

    if manifests is not None and kubeconfig is not None:
        raise click.UsageError("--manifests and --kubeconfig exclude each other: name one source")
    if manifests is None and kubeconfig is None and "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise click.UsageError("this is no pod of a cluster: name a source by --kubeconfig FILE or --manifests DIR")
    _configure_log(log_format, log_level)
    settings = Settings(
        node=node, manifests=manifests, kubeconfig=kubeconfig, roles=roles,
        ingress_selector=ingress_selector, socket=socket_path,
        run_dir=run_dir, state_dir=state_dir, mode=mode, buckets=buckets, seed=seed,
        drain_time=drain_time, resync=resync, probe_interval=probe_interval,
        vip_rules=VipRules(vip_range, manifests is None, pod_range, service_range, manifests is not None),
        namespace_kept=namespace_kept, results=results, metrics=metrics,
    )  # fmt: skip
    look_for_sysctls_at(str(sysctls))
    try:
        asyncio.run(Daemon(settings).run())
    except (AnotherHelper, SocketTaken, BackendError, OSError) as error:
        raise click.ClickException(str(error)) from None


@main.command("status", context_settings=_ENVIRONMENT)
@click.argument("services", nargs=-1, metavar="[SERVICE]...")
@_socket
@click.option("--all", "all_of_it", is_flag=True, help="Each endpoint of every Service, and every problem.")
@click.option("--json", "as_json", is_flag=True, help="For programs; always all of it.")
def show_status(services: tuple[str, ...], socket_path: Path, all_of_it: bool, as_json: bool) -> None:
    """Show what this node serves, by which endpoints, and what is or was wrong.

    SERVICE chooses some: namespace/name, a name, VIP, endpoint, pod or node; a pattern of * and ? fits, too.
    """
    from node_helper.status_text import as_text

    shown = _ask(socket_path, "status", patterns=list(services))["status"]
    click.echo(json.dumps(shown, indent=2) if as_json else as_text(shown, all_of_it=all_of_it))


@main.command("trace", context_settings=_ENVIRONMENT)
@click.argument("source")
@click.argument("source_port", type=click.IntRange(0, 65535))
@click.argument("vip")
@click.argument("destination_port", type=click.IntRange(0, 65535))
@click.option("--proto", type=click.Choice(["tcp", "udp", "icmp"]), default="tcp", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_socket
def show_trace(
    source: str, source_port: int, vip: str, destination_port: int, proto: str, as_json: bool, socket_path: Path
) -> None:
    """Say to which pod a flow goes from this ingress node, and by which bucket and route."""
    try:
        flow = {"protocol": proto, "source": str(ip_address(source)), "source_port": source_port,
                "destination": str(ip_address(vip)), "destination_port": destination_port}  # fmt: skip
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    found = _ask(socket_path, "trace", flow=flow)["trace"]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"{proto} {source} port {source_port} -> {vip} port {destination_port}")
    click.echo(f"  Service   {found['service']}, mode {found['mode']}")
    click.echo(f"  bucket    {found['bucket']} (table {found['table']} of the router's namespace)")
    click.echo(f"  endpoint  {found['endpoint']} {found['pod'] and '(pod ' + found['pod'] + ')'}")
    if found["stored_owner"] != found["endpoint"]:
        click.echo(f"  stored    {found['stored_owner']} (not usable from here: falls to the endpoint above)")
    if previous := found.get("previous_owners"):  # a helper that runs since before an upgrade has none
        whom = f"connections that {found['endpoint']} does not know go on to {', then '.join(previous)}"
        click.echo(f"  before    {', '.join(previous)} (moved lately: {whom})")
    if found["route"]:
        via = f" via {found['route']['gateway']}" if found["route"]["gateway"] else ""
        click.echo(f"  route     {found['route']['device']}{via}, path MTU {found['route']['mtu']}")


@main.command(context_settings=_ENVIRONMENT)
@_run_dir
@click.option("--results", type=click.Path(path_type=Path), default=Path("/var/lib/cni/results"), show_default=True,
              help="libcni's cache of results.")  # fmt: skip
def adopt(run_dir: Path, results: Path) -> None:
    """Take on all pods that are older than the installation, from the container runtime's CNI cache.

    A running helper does so by itself for those that are to have tunnels; this says why one is not taken on.
    """
    from node_helper.adopt import adopt as adopt_all

    try:
        outcomes = adopt_all(results, run_dir)
    except OSError as error:
        raise click.ClickException(str(error)) from None
    for outcome in outcomes:
        click.echo(f"{outcome.name}: {outcome.text}")
    count = sum(outcome.record is not None for outcome in outcomes)
    click.echo(f"{count} adopted; a running helper configures them at once")


@main.command(context_settings=_ENVIRONMENT)
@_socket
def drain(socket_path: Path) -> None:
    """Announce no VIP from this node any more; go on forwarding."""
    _ask(socket_path, "drain", draining=True)
    click.echo("draining: VIP routes change to protocol 117, which BGP does not announce; `undrain` ends it")


@main.command(context_settings=_ENVIRONMENT)
@_socket
def undrain(socket_path: Path) -> None:
    """Announce this node's VIPs again."""
    _ask(socket_path, "drain", draining=False)
    click.echo("announcing again")


@main.command(context_settings=_ENVIRONMENT)
@click.option("--mode", type=click.Choice(MODES), multiple=True, help="Only what this mode needs; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def preflight(mode: tuple[str, ...], as_json: bool) -> None:
    """Name what this node lacks, what around us is in the way, and how to mend it."""
    from node_helper.preflight import as_plain, as_text, check

    findings = check(mode or MODES)
    click.echo(json.dumps(as_plain(findings), indent=2) if as_json else as_text(findings))
    if not all(finding.passes for finding in findings):
        sys.exit(1)


@main.command(context_settings=_ENVIRONMENT)
@_socket
@_run_dir
@_state_dir
@click.option("--force", is_flag=True, help="Also while a helper is running (it would put everything back).")
def cleanup(socket_path: Path, run_dir: Path, state_dir: Path, force: bool) -> None:
    """Remove everything of ours from this node: router, routes, rules, sets, and from its pods; nothing else."""
    from node_helper.cleanup import clean

    if not force and answers(socket_path):
        raise click.ClickException(f"a helper is running on {socket_path}: stop it first, or use --force")
    failures = clean(run_dir, state_dir, click.echo)
    if failures:
        raise click.ClickException("; ".join(failures))


@main.command("keep-namespace", context_settings=_ENVIRONMENT)
@click.option("--check", is_flag=True, help="Only say, by the exit status, whether it is there.")
def keep_namespace(check: bool) -> None:
    """Make the router's namespace, and again when it is gone; it stays when this ends."""
    from node_helper.keeper import is_kept, keep

    if check:
        sys.exit(0 if is_kept() else 1)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # as the first process of a container it would hear neither
        signal.signal(number, lambda *_: ended.set())
    try:
        keep(click.echo, lambda: not ended.wait(_LOOK_EVERY))
    except OSError as error:
        raise click.ClickException(str(error)) from None


@main.command("wait-until-left", context_settings=_ENVIRONMENT)
@_socket
@click.option("--at-most", type=click.FloatRange(min=0), default=3600.0, show_default=True, help="Seconds.")
def wait_until_left(socket_path: Path, at_most: float) -> None:
    """Wait while this node is leaving the ingress role; at once over where it stays. For a hook before the end."""
    from node_helper.keeper import wait_until_left as waited

    deadline = time.monotonic() + at_most

    def wait() -> bool:
        time.sleep(min(_LOOK_EVERY, max(deadline - time.monotonic(), 0)))
        return time.monotonic() < deadline

    click.echo(waited(lambda: _ask(socket_path, "status", patterns=["/"])["status"], wait, looks=4))


def _ask(path: Path, op: str, **fields: Any) -> dict[str, Any]:
    try:
        return question(path, op, **fields)
    except (ConnectionError, LookupError) as error:
        raise click.ClickException(str(error.args[0])) from None


def _configure_log(style: str, level: str) -> None:
    renderer: Any = (
        structlog.processors.JSONRenderer() if style == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    main()
