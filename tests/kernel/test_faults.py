"""The fault matrix in short: a handful of its cells, with few connections, of which none may be lost without a reason.

All of it is `make faults` (docs/faults.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cni_plugin.tunnel import VXLAN_GPE
from tests.faults.__main__ import measure
from tests.faults.faults import FAULTS
from tests.faults.peers import PEERS
from tests.faults.stage import OWN, Stage

CONNECTIONS = 100
FAMILIES = ("v4", "v6")
COSTS_NOTHING = (
    ("endpoint-added", "busy"),
    ("ingress-drained", "new"),
    ("helpers-killed", "udp"),
    ("table-deleted", "idle"),
    ("ecmp-reshuffled", "transfers"),
    ("mtu-lowered", "transfers"),
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage(VXLAN_GPE, minute=2.0) as stage:
        yield stage


@pytest.fixture(autouse=True)
def whole(stage: Stage) -> Iterator[None]:
    yield
    stage.make_whole()


@pytest.mark.parametrize(("fault", "load"), COSTS_NOTHING)
def test_a_fault_that_costs_nothing_does_not(stage: Stage, fault: str, load: str) -> None:
    for cell in measure(stage, (fault, load, VXLAN_GPE, FAMILIES), CONNECTIONS):
        assert cell.open and cell.requests
        # Not how long it took: on a busy machine the pods' programs may stand still.
        assert (cell.lost, cell.requests_lost) == (0, 0), cell
        assert cell.moved == 0 or load == "udp", cell


@pytest.mark.parametrize("fault", ["endpoint-terminating", "endpoint-killed"])
def test_the_end_of_an_endpoint_costs_its_own_connections_only(stage: Stage, fault: str) -> None:
    for cell in measure(stage, (fault, "busy", VXLAN_GPE, FAMILIES), CONNECTIONS):
        assert 0 < cell.lost < cell.open
        assert (cell.unexplained, cell.explained) == (0, OWN), cell


def test_an_ingress_node_that_dies_while_an_endpoint_drains_costs_no_other_connection(stage: Stage) -> None:
    """BIRD with BFD finds out; datagrams that were under way are the price."""
    assert not FAULTS["ingress-dies-endpoint-drains"].leaves_traces
    for cell in measure(stage, ("ingress-dies-endpoint-drains", "udp", VXLAN_GPE, FAMILIES), CONNECTIONS):
        assert (cell.lost, cell.unexplained) == (0, 0), cell


@pytest.mark.parametrize(
    ("peer", "fault"),
    [("original", "ecmp-reshuffled"), ("ecmp", "endpoint-added"), ("ecmp-resilient", "endpoint-terminating")],
)
def test_what_others_lose_is_found(peer: str, fault: str) -> None:
    """Without this nobody would know that the matrix can find anything."""
    with PEERS[peer].stage(VXLAN_GPE, 2.0) as stage:
        for cell in measure(stage, ("nothing", "busy", VXLAN_GPE, FAMILIES), CONNECTIONS):
            assert (cell.lost, cell.unexplained) == (0, 0), cell
        stage.make_whole()
        for cell in measure(stage, (fault, "busy", VXLAN_GPE, FAMILIES), CONNECTIONS):
            assert cell.reset >= CONNECTIONS // 10, cell
            assert cell.unexplained, cell
