"""What an operator types: every command has its help, wrong values are named, and nothing needs a running helper."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from node_helper.asks import AskServer
from node_helper.cli import main
from node_helper.settings import Settings

COMMANDS = ("run", "status", "trace", "preflight", "adopt", "drain", "undrain", "cleanup")
ASKING = (("status",), ("trace", "203.0.113.9", "4711", "198.51.100.7", "80"), ("drain",), ("undrain",))
STATUS: dict[str, Any] = {
    "node": "ingress1",
    "roles": ["ingress", "node"],
    "uptime_seconds": 61.2,
    "buckets": 256,
    "synced": True,
    "ingress": True,
    "draining": False,
    "draining_why": "",
    "addresses": ["10.1.1.2"],
    "attachments": 3,
    "last_failure": None,
    "nodes": [{"name": "ingress1", "addresses": ["10.1.1.2"], "ingress": True}],
    "totals": {"services": 1, "endpoints": 2, "usable_endpoints": 1, "vips": 1}
    | {"announced_vips": 0, "only_forwarded_vips": 1},
    "services": [
        {
            "name": "shop/web",
            "vips": ["198.51.100.7"],
            "mode": "vxlan-gpe",
            "announced": [],
            "forwarded": ["198.51.100.7"],
            "endpoints": [
                {"address": "10.244.2.1", "pod": "shop/web-1", "node": "worker1", "usable": True, "buckets": 256},
                {"address": "10.244.2.2", "pod": "", "node": "worker2", "usable": False, "buckets": 0},
            ],
        }
    ],
    "problems": [
        {"kind": "Service", "object": "shop/api", "reason": "InvalidVIP", "message": "it is no address"}
        | {"since": "2026-11-25T10:00:00Z", "passed": "2026-11-25T11:00:00Z", "times": 3}
    ],
    "passed_problems": [],
}
TRACE = {
    "service": "shop/web",
    "vip": "198.51.100.7",
    "mode": "gre",
    "bucket": 77,
    "table": 1077,
    "endpoint": "10.244.2.1",
    "pod": "shop/web-1",
    "stored_owner": "10.244.2.9",
    "previous_owners": ["10.244.2.9", "10.244.2.7"],
    "tunnel_id": 70000,
    "route": {"device": "eth0", "mtu": 1500, "gateway": "10.1.1.1"},
}


def call(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(
        main, [str(argument) for argument in arguments], env=env, prog_name="service-tunnel-helper"
    )


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What `run` would run with; nothing is run."""
    given: list[Settings] = []

    class Daemon:
        def __init__(self, settings: Settings) -> None:
            given.append(settings)

        async def run(self) -> None:
            pass

    monkeypatch.setattr("node_helper.daemon.Daemon", Daemon)
    monkeypatch.setattr("node_helper.cli._configure_log", lambda *_: None)
    return given


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """A helper that answers; the socket, and the questions that it was asked."""
    path = tmp_path / "helper.sock"
    asked: list[dict[str, Any]] = []

    async def answer(question: dict[str, Any]) -> dict[str, Any]:
        asked.append(question)
        if question.get("flow", {}).get("destination") == "198.51.100.99":
            raise LookupError("198.51.100.99 is no VIP that is served: see `service-tunnel-helper status`")
        return {"status": STATUS, "trace": TRACE}

    loop = asyncio.new_event_loop()
    server = AskServer(path, dict.fromkeys(("status", "trace", "drain"), answer))
    loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield path, asked
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


# --- help -----------------------------------------------------------------------------------------------


def test_the_commands_are_those_that_are_promised() -> None:
    assert set(COMMANDS) <= set(main.commands)
    shown = call("--help")
    assert shown.exit_code == 0
    for name in COMMANDS:
        assert name in shown.output


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help(name: str, flag: str) -> None:
    shown = call(name, flag)
    assert shown.exit_code == 0
    assert shown.output.startswith("Usage: service-tunnel-helper " + name)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for_or_what_it_takes(name: str) -> None:
    for parameter in main.commands[name].params:
        if isinstance(parameter, click.Option):
            told = parameter.help or (isinstance(parameter.type, click.Choice) and parameter.type.choices)
            assert told, f"{name} {parameter.opts}"


def test_the_version_is_shown() -> None:
    shown = call("--version")
    assert shown.exit_code == 0 and "version" in shown.output


@pytest.mark.parametrize("arguments", [("dance",), ("status", "--dance"), ("trace", "203.0.113.9"), ("run",)])
def test_a_wrong_call_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    shown = call(*arguments)
    assert shown.exit_code == 2
    assert "Usage:" in shown.output and "Error:" in shown.output


# --- values ---------------------------------------------------------------------------------------------

WRONG = [
    ("--buckets", "100", "100 is not a power of two from 1 to 4096"),
    ("--buckets", "8192", "8192 is not a power of two"),
    ("--buckets", "0", "0 is not a power of two"),
    ("--buckets", "many", "'many'"),
    ("--roles", "ingres", "'ingres': name node, ingress"),
    ("--roles", "", "name node, ingress"),
    ("--mode", "ipip", "'ipip' is not one of"),
    ("--ingress-selector", "tunnel", "'tunnel' is not label=value"),
    ("--ingress-selector", "=x", "'=x' is not label=value"),
    ("--seed", "-1", "-1"),
    ("--seed", "4294967296", "4294967296"),
    ("--resync", "0", "0"),
    ("--drain-time", "0", "0"),
    ("--vip-range", "198.51.100.0", None),  # one address is a range
    ("--vip-range", "198.51.100.7/24", "'198.51.100.7/24'"),
    ("--vip-range", "198.51.100.0/24=", "names no namespace"),
    ("--vip-range", "web", "'web'"),
    ("--pod-range", "10.0.0.1/8", "10.0.0.1/8"),
    ("--service-range", "x", "'x'"),
    ("--metrics", "9100", "'9100' is not ADDRESS:PORT"),
    ("--metrics", "127.0.0.1:http", "'127.0.0.1:http' is not ADDRESS:PORT"),
    ("--metrics", "127.0.0.1:99999", "'127.0.0.1:99999' is not ADDRESS:PORT"),
    ("--metrics", "localhost.:9100:x", "is not ADDRESS:PORT"),
    ("--log-level", "loud", "'loud'"),
]


@pytest.mark.parametrize(("option", "value", "says"), WRONG)
def test_a_wrong_value_is_named_with_its_option(
    settings: list[Settings], tmp_path: Path, option: str, value: str, says: str | None
) -> None:
    shown = call("run", "--manifests", tmp_path, option, value)
    if says is None:
        assert shown.exit_code == 0 and settings
        return
    assert shown.exit_code == 2, shown.output
    assert not settings
    told = " ".join(shown.output.split())
    assert option in told and says in told


def test_settings_without_flags_are_the_promised_defaults(settings: list[Settings], tmp_path: Path) -> None:
    assert call("run", "--manifests", tmp_path, "--node", "n1").exit_code == 0
    assert settings == [Settings(node="n1", manifests=tmp_path)]


def test_flags_become_settings(settings: list[Settings], tmp_path: Path) -> None:
    flags = (
        "--roles ingress --ingress-selector node=tunnel,zone=a --mode gre --buckets 64 --seed 1 --resync 5 "
        "--drain-time 60 --vip-range 198.51.100.0/24=shop,web --vip-range 2001:db8::/32 --pod-range 10.244.0.0/16 "
        "--service-range 10.96.0.0/12 --metrics [::1]:9100 --socket /s --run-dir /r --state-dir /t "
        "--results /c"
    )
    shown = call("run", "--manifests", tmp_path, "--node", "n1", *flags.split())
    assert shown.exit_code == 0, shown.output
    (found,) = settings
    assert (found.roles, found.mode, found.buckets, found.seed, found.resync, found.drain_time) == (
        frozenset({"ingress"}),
        "gre",
        64,
        1,
        5.0,
        60.0,
    )
    assert found.ingress_selector == (("node", "tunnel"), ("zone", "a"))
    assert found.metrics == ("::1", 9100)
    folders = found.socket, found.run_dir, found.state_dir, found.results
    assert folders == (Path("/s"), Path("/r"), Path("/t"), Path("/c"))
    assert found.vip_rules.ranges == (
        (ip_network("198.51.100.0/24"), frozenset({"shop", "web"})),
        (ip_network("2001:db8::/32"), frozenset()),
    )
    assert found.vip_rules.pod_ranges == (ip_network("10.244.0.0/16"),)
    assert found.vip_rules.service_ranges == (ip_network("10.96.0.0/12"),)


def test_metrics_on_all_addresses_may_leave_the_address_out(settings: list[Settings], tmp_path: Path) -> None:
    call("run", "--manifests", tmp_path, "--metrics", ":9100")
    assert settings[0].metrics == ("0.0.0.0", 9100)


def test_no_ingress_label_is_no_selector(settings: list[Settings], tmp_path: Path) -> None:
    call("run", "--manifests", tmp_path, "--ingress-selector", "")
    assert settings[0].ingress_selector == ()


def test_every_flag_of_run_may_come_from_the_environment(settings: list[Settings], tmp_path: Path) -> None:
    environment = {
        "SVC_TUNNEL_MANIFESTS": str(tmp_path),
        "SVC_TUNNEL_NODE": "n2",
        "SVC_TUNNEL_ROLES": "node",
        "SVC_TUNNEL_INGRESS_SELECTOR": "a=b",
        "SVC_TUNNEL_SOCKET": "/s",
        "SVC_TUNNEL_RUN_DIR": "/r",
        "SVC_TUNNEL_STATE_DIR": "/t",
        "SVC_TUNNEL_MODE": "gre",
        "SVC_TUNNEL_BUCKETS": "64",
        "SVC_TUNNEL_SEED": "7",
        "SVC_TUNNEL_DRAIN_TIME": "8",
        "SVC_TUNNEL_RESYNC": "9",
        "SVC_TUNNEL_PROBE_INTERVAL": "11",
        "SVC_TUNNEL_VIP_RANGE": "198.51.100.0/24=shop,web 203.0.113.0/24",
        "SVC_TUNNEL_POD_RANGE": "10.244.0.0/16 fd00:44::/48",
        "SVC_TUNNEL_SERVICE_RANGE": "10.96.0.0/12",
        "SVC_TUNNEL_NAMESPACE_KEPT": "true",
        "SVC_TUNNEL_SYSCTLS": "/proc/sys/net",
        "SVC_TUNNEL_RESULTS": "/c",
        "SVC_TUNNEL_METRICS": "127.0.0.1:9100",
        "SVC_TUNNEL_LOG_FORMAT": "json",
        "SVC_TUNNEL_LOG_LEVEL": "debug",
    }
    options = {p.opts[-1] for p in main.commands["run"].params if isinstance(p, click.Option)}
    options -= {"--help", "--kubeconfig"}  # the latter excludes --manifests and has a test of its own
    named = {"--" + name.removeprefix("SVC_TUNNEL_").lower().replace("_", "-") for name in environment}
    assert options <= named, "an option that this test does not know yet"
    shown = call("run", env=environment)
    assert shown.exit_code == 0, shown.output
    (found,) = settings
    assert (found.node, found.roles, found.mode, found.buckets) == ("n2", frozenset({"node"}), "gre", 64)
    assert (found.seed, found.drain_time, found.resync, found.probe_interval) == (7, 8.0, 9.0, 11.0)
    assert found.metrics == ("127.0.0.1", 9100)
    folders = found.socket, found.run_dir, found.state_dir, found.results
    assert folders == (Path("/s"), Path("/r"), Path("/t"), Path("/c"))
    assert [str(network) for network, _ in found.vip_rules.ranges] == ["198.51.100.0/24", "203.0.113.0/24"]
    assert [str(network) for network in found.vip_rules.pod_ranges] == ["10.244.0.0/16", "fd00:44::/48"]


def test_an_api_server_is_a_source_whose_vips_must_be_allowed(settings: list[Settings], tmp_path: Path) -> None:
    assert call("run", env={"SVC_TUNNEL_KUBECONFIG": str(tmp_path / "k")}).exit_code == 0
    assert call("run", env={"KUBERNETES_SERVICE_HOST": "10.96.0.1"}).exit_code == 0
    by_file, in_cluster = settings
    assert (by_file.manifests, by_file.kubeconfig) == (None, tmp_path / "k")
    assert (in_cluster.manifests, in_cluster.kubeconfig) == (None, None)
    assert by_file.vip_rules.require_range and in_cluster.vip_rules.require_range


def test_one_source_has_to_be_named(settings: list[Settings], tmp_path: Path) -> None:
    neither, both = call("run"), call("run", "--manifests", tmp_path, "--kubeconfig", tmp_path / "k")
    assert neither.exit_code == both.exit_code == 2 and not settings
    assert "name a source by --kubeconfig FILE or --manifests DIR" in neither.output
    assert "exclude each other" in both.output


def test_a_flag_counts_more_than_the_environment(settings: list[Settings], tmp_path: Path) -> None:
    call("run", "--manifests", tmp_path, "--mode", "mpls", env={"SVC_TUNNEL_MODE": "gre"})
    assert settings[0].mode == "mpls"


def test_what_kubernetes_puts_into_every_pods_environment_is_not_read(settings: list[Settings], tmp_path: Path) -> None:
    """A Service called `service-tunnel` makes such variables."""
    call("run", "--manifests", tmp_path, env={"SERVICE_TUNNEL_MODE": "gre", "SERVICE_TUNNEL_BUCKETS": "1"})
    assert (settings[0].mode, settings[0].buckets) == ("vxlan-gpe", 256)


# --- asking a helper ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ASKING, ids=[arguments[0] for arguments in ASKING])
def test_without_a_helper_it_is_said_what_to_look_at(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    shown = call(*arguments, "--socket", tmp_path / "none.sock")
    assert shown.exit_code == 1
    assert shown.stderr.startswith(f"Error: no helper answers on {tmp_path / 'none.sock'}")
    assert "is `run` running? another --socket?" in shown.stderr
    assert not shown.stdout


@pytest.mark.parametrize("arguments", ASKING, ids=[arguments[0] for arguments in ASKING])
def test_the_socket_may_come_from_the_environment(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    shown = call(*arguments, env={"SVC_TUNNEL_SOCKET": str(tmp_path / "other.sock")})
    assert f"no helper answers on {tmp_path / 'other.sock'}" in shown.stderr


def test_status_is_readable_and_names_problems(helper: tuple[Path, list[dict[str, Any]]]) -> None:
    shown = call("status", "--socket", helper[0])
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    problem = lines.pop()
    assert lines == [
        "node ingress1, roles ingress and node, up 1 min 1 s",
        "  ingress    serving",
        "  addresses  10.1.1.2",
        "  pods       3 attachment records",
        "  Services   1, with 2 endpoints, 1 of them usable",
        "  VIPs       1: 0 announced, 1 only forwarded",
        "  nodes      1, ingress: ingress1 (10.1.1.2)",
        "",
        "Service shop/web  VIP 198.51.100.7  mode vxlan-gpe",
        "  only forwarded",
        "  10.244.2.1   256 of 256 buckets  usable      shop/web-1 on worker1",
        "  10.244.2.2     0 of 256 buckets  not usable  worker2",
        "",
        "problems:",
    ]
    assert problem.startswith("  InvalidVIP (Service shop/api, until ")
    assert problem.endswith(", 3 times): it is no address")


def test_status_asks_for_the_services_that_are_named(helper: tuple[Path, list[dict[str, Any]]]) -> None:
    assert call("status", "shop/web", "198.51.100.7", "--socket", helper[0]).exit_code == 0
    assert call("status", "--socket", helper[0]).exit_code == 0
    assert [asked["patterns"] for asked in helper[1]] == [["shop/web", "198.51.100.7"], []]


def test_status_for_programs_is_json(helper: tuple[Path, list[dict[str, Any]]]) -> None:
    assert json.loads(call("status", "--json", "--socket", helper[0]).stdout) == STATUS


def test_a_trace_names_bucket_endpoint_and_route(helper: tuple[Path, list[dict[str, Any]]]) -> None:
    path, asked = helper
    shown = call("trace", "203.0.113.9", "4711", "198.51.100.7", "80", "--proto", "udp", "--socket", path)
    assert shown.exit_code == 0
    for words in (
        "shop/web, mode gre",
        "77 (table 1077",
        "10.244.2.1 (pod shop/web-1)",
        "10.244.2.9, then 10.244.2.7",
        "MTU 1500",
    ):
        assert words in shown.stdout
    assert asked[0]["flow"] == {
        "protocol": "udp",
        "source": "203.0.113.9",
        "source_port": 4711,
        "destination": "198.51.100.7",
        "destination_port": 80,
    }
    as_json = call("trace", "203.0.113.9", "4711", "198.51.100.7", "80", "--json", "--socket", path)
    assert json.loads(as_json.stdout) == TRACE


def test_a_refused_trace_is_told_and_fails(helper: tuple[Path, list[dict[str, Any]]]) -> None:
    shown = call("trace", "203.0.113.9", "4711", "198.51.100.99", "80", "--socket", helper[0])
    assert shown.exit_code == 1
    assert shown.stderr == "Error: 198.51.100.99 is no VIP that is served: see `service-tunnel-helper status`\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("web", "1", "198.51.100.7", "80"), "'web'"),
        (("203.0.113.9", "1", "198.51.100", "80"), "'198.51.100'"),
        (("203.0.113.9", "70000", "198.51.100.7", "80"), "70000"),
        (("203.0.113.9", "1", "198.51.100.7", "http"), "'http'"),
        (("203.0.113.9", "1", "198.51.100.7", "80", "--proto", "sctp"), "'sctp'"),
    ],
)
def test_a_flow_that_is_none_is_a_usage_error(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    shown = call("trace", *arguments, "--socket", tmp_path / "none")
    assert shown.exit_code == 2
    assert says in shown.output


def test_draining_is_asked_for_and_ended(helper: tuple[Path, list[dict[str, Any]]]) -> None:
    path, asked = helper
    assert "undrain" in call("drain", "--socket", path).stdout
    assert call("undrain", "--socket", path).exit_code == 0
    assert [question["draining"] for question in asked] == [True, False]


def test_cleanup_beside_a_running_helper_is_refused(
    helper: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would put everything back."""

    def never(*_: object) -> None:
        raise AssertionError("nothing must be touched")

    monkeypatch.setattr("node_helper.cleanup.clean", never)
    shown = call("cleanup", "--socket", helper[0])
    assert shown.exit_code == 1
    assert "stop it first, or use --force" in shown.stderr


def test_what_cleanup_could_not_remove_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node_helper.cleanup.clean", lambda *_: ["set busy", "chain busy"])
    shown = call("cleanup", "--socket", tmp_path / "none")
    assert shown.exit_code == 1
    assert shown.stderr == "Error: set busy; chain busy\n"
