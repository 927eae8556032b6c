"""Our iptables chains: put whole, only when they are not so already, and taken away with nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from node_helper.kernel import xtables
from node_helper.kernel.xtables import ensure_host_chains, ensure_router_chains, remove_host_chains
from node_helper.plan.cover import covers
from node_helper.plan.state import RouterWanted

BUILT_IN = {"raw": ("PREROUTING", "OUTPUT"), "filter": ("INPUT", "FORWARD", "OUTPUT"), "mangle": ("PREROUTING",)}
COVERS = covers(frozenset({"198.51.100.1", "2001:db8::1"}))
ROUTER = RouterWanted(256, 0x1234, ("10.1.1.2",))


class Tables:
    """iptables and ip6tables in memory: `-save` and `-restore` as far as they are used."""

    def __init__(self) -> None:
        self.tables: dict[tuple[str, str], dict[str, list[str]]] = {
            (tool, table): {chain: [] for chain in chains}
            for tool in ("iptables", "ip6tables")
            for table, chains in BUILT_IN.items()
        }
        self.restored = 0

    def run(self, argv: Sequence[str], text: str = "") -> str:
        tool, _, verb = argv[0].partition("-")
        if verb == "save":
            return self._save(tool, argv[2])
        assert verb == "restore" and argv[1] == "--wait=2" and text.endswith("COMMIT\n")
        self.restored += 1
        lines = text.splitlines()
        table = self.tables[tool, lines[0].removeprefix("*")]
        if "--noflush" not in argv:
            for rules in table.values():
                rules.clear()
        for line in lines[1:-1]:
            self._do(table, line)
        return ""

    def _save(self, tool: str, table: str) -> str:
        chains = self.tables[tool, table]
        heads = [f":{chain} {'ACCEPT' if chain in BUILT_IN[table] else '-'} [12:3456]" for chain in chains]
        rules = [f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules]
        return "\n".join([f"*{table}", *heads, *rules, "COMMIT", ""])

    @staticmethod
    def _do(table: dict[str, list[str]], line: str) -> None:
        verb, _, rest = line.partition(" ")
        chain, _, rule = rest.partition(" ")
        if line.startswith(":"):
            table[line[1:].split(maxsplit=1)[0]] = []  # a chain that is named is made, or emptied
        elif verb == "-A":
            table[chain].append(rule)
        elif verb == "-I":
            table[chain].insert(0, rule)
        elif verb == "-D":
            table[chain].remove(rule)
        elif verb == "-F":
            table[chain].clear()
        else:
            assert verb == "-X" and not table[chain], line
            assert not any(f"-j {chain}" in rule for rules in table.values() for rule in rules), "chain in use"
            del table[chain]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Tables:
    tables = Tables()
    monkeypatch.setattr(xtables, "run", tables.run)
    return tables


def test_our_chains_are_called_first_and_stay_as_they_are(tables: Tables) -> None:
    for tool in ("iptables", "ip6tables"):
        tables.tables[tool, "filter"]["FORWARD"] += ["-j KUBE-FORWARD"]
    assert ensure_host_chains(COVERS)
    for tool in ("iptables", "ip6tables"):
        assert tables.tables[tool, "filter"]["FORWARD"] == ["-j SERVICE-TUNNEL-FORWARD", "-j KUBE-FORWARD"]
        assert tables.tables[tool, "raw"]["PREROUTING"] == ["-j SERVICE-TUNNEL"]
    count = tables.restored
    assert not ensure_host_chains(COVERS)
    assert tables.restored == count, "nothing is written the second time"


def test_the_nodes_own_connections_stay_tracked(tables: Tables) -> None:
    ensure_host_chains(COVERS)
    rules = tables.tables["iptables", "raw"]["SERVICE-TUNNEL"]
    assert "src -m addrtype --dst-type LOCAL -j RETURN" in rules[0], "before anything that is not tracked"


def test_addresses_are_looked_up_only_where_all_vips_are(tables: Tables) -> None:
    """A comparison costs a packet that is not ours far less than a look into a set."""
    ensure_host_chains(COVERS)
    for tool, network in (("iptables", "198.51.100.0/24"), ("ip6tables", "2001:db8::/64")):
        rules = [
            rule
            for table in ("raw", "filter")
            for rule in _ours(tables, tool, table)
            if "--match-set svctun-vips" in rule
        ]
        heeding = [rule for rule in rules if "svctun-loose" not in rule]
        assert heeding and all(rule.split()[1] == network for rule in heeding)


def test_chains_are_written_anew_for_vips_elsewhere_and_for_no_others(tables: Tables) -> None:
    ensure_host_chains(COVERS)
    assert not ensure_host_chains(covers(frozenset({"198.51.100.77", "2001:db8::1"})))
    assert ensure_host_chains(covers(frozenset({"203.0.113.1", "2001:db8::1"})))
    assert ensure_host_chains(covers(frozenset()))
    assert not any("svctun-vips6" in rule for table in ("raw", "filter") for rule in _ours(tables, "ip6tables", table))


def _ours(tables: Tables, tool: str, table: str) -> list[str]:
    return [
        rule for chain, rules in tables.tables[tool, table].items() if chain.startswith("SERVICE") for rule in rules
    ]


@pytest.mark.parametrize("damage", ["jump", "place", "twice", "rule", "other rule", "seal", "extra", "chain"])
def test_what_someone_changed_in_our_chains_is_put_back(tables: Tables, damage: str) -> None:
    ensure_host_chains(COVERS)
    before = {key: {name: list(rules) for name, rules in chains.items()} for key, chains in tables.tables.items()}
    table = tables.tables["iptables", "filter"]
    if damage == "jump":
        table["FORWARD"].clear()
    elif damage == "place":
        table["FORWARD"].insert(0, "-j KUBE-FORWARD")
        before["iptables", "filter"]["FORWARD"].append("-j KUBE-FORWARD")
    elif damage == "twice":
        table["FORWARD"].append("-j SERVICE-TUNNEL-FORWARD")
    elif damage == "other rule":
        table["SERVICE-TUNNEL-FORWARD"][0] = "-i svctun -j DROP"
    elif damage == "rule":
        del table["SERVICE-TUNNEL-FORWARD"][0]
    elif damage == "seal":
        del table["SERVICE-TUNNEL-FORWARD"][-1]
    elif damage == "extra":
        table["SERVICE-TUNNEL-FORWARD"].insert(0, "-j DROP")
    else:
        table["FORWARD"].clear()
        del table["SERVICE-TUNNEL-FORWARD"]
    assert ensure_host_chains(COVERS)
    assert tables.tables == before
    assert not ensure_host_chains(COVERS)


def test_removal_takes_ours_and_nothing_else(tables: Tables) -> None:
    tables.tables["iptables", "raw"]["PREROUTING"] += ["-j cali-PREROUTING"]
    before = {key: {name: list(rules) for name, rules in chains.items()} for key, chains in tables.tables.items()}
    ensure_host_chains(COVERS)
    tables.tables["iptables", "filter"]["FORWARD"].append("-j SERVICE-TUNNEL-FORWARD")  # a second call to it
    for version in (4, 6):
        remove_host_chains(version)
    assert tables.tables == before
    count = tables.restored
    for version in (4, 6):
        remove_host_chains(version)
    assert tables.restored == count


def test_every_packet_that_enters_the_router_is_hashed_with_the_seed(tables: Tables) -> None:
    assert ensure_router_chains(ROUTER)
    for tool in ("iptables", "ip6tables"):
        first, second, _, seal = tables.tables[tool, "mangle"]["PREROUTING"]
        assert "-m socket" in first, "which makes the kernel put fragments together before they are hashed"
        assert "-i host0" in second and "--hmark-tuple src,dst,sport,dport" in second
        assert "--hmark-mod 256 --hmark-offset 0x10000 --hmark-rnd 0x1234" in second
        assert "--comment svctun-" in seal
    assert not ensure_router_chains(ROUTER)


def test_vips_with_client_affinity_are_in_a_set_and_hashed_by_address_after_the_others(tables: Tables) -> None:
    ensure_router_chains(ROUTER)
    for version, tool in ((4, "iptables"), (6, "ip6tables")):
        rules = tables.tables[tool, "mangle"]["PREROUTING"]
        assert f"--match-set svctun-affinity{version} dst -j HMARK --hmark-tuple src,dst --hmark-mod" in rules[2]
    by_address = RouterWanted(256, 0x1234, ("10.1.1.2",), by_address=frozenset({"198.51.100.7", "2001:db8::7"}))
    assert not ensure_router_chains(by_address), "a Service more is a member more"


@pytest.mark.parametrize("changed", [RouterWanted(128, 0x1234, ()), RouterWanted(256, 0x9999, ())])
def test_another_seed_or_number_of_buckets_is_written(tables: Tables, changed: RouterWanted) -> None:
    ensure_router_chains(ROUTER)
    assert ensure_router_chains(changed)
    assert len(tables.tables["iptables", "mangle"]["PREROUTING"]) == 4
