"""The fault matrix' judgement: what a fault excuses, what is a finding, and that a run can go on where it ended."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.faults import __main__ as program
from tests.faults.cells import BUSY, LATE, LOST, REQUEST, STALL, Cell, Excuse, Loss, Outcome, judge, load, save, table
from tests.faults.faults import FAULTS
from tests.faults.grid import grid
from tests.faults.loads import LOADS
from tests.faults.page import bar_share, html, svg
from tests.faults.peers import PEERS

KEY = ("endpoint-killed", "busy", "vxlan-gpe", "v4")
OWN = Excuse("its own", 100.0, pods=frozenset(("pod1",)), unanswered=False)
UNNOTICED = Excuse("not noticed", 100.0, 101.0, pods=frozenset(("pod1",)))
WAY = Excuse("on the way", 100.0, 100.3, kinds=LATE)


def outcome(*losses: Loss, moved: int = 0) -> Outcome:
    return Outcome(open=10, requests=100, moved=moved, longest=1.5, losses=losses)


def reset(pod: str, since: float = 100.5, until: float = 100.6, kind: str = LOST) -> Loss:
    return Loss(kind, "reset", pod, since, until)


@pytest.mark.parametrize(
    ("excuse", "loss", "covered"),
    [
        (OWN, reset("pod1"), True),
        (OWN, reset("pod1", since=99.9), True),
        (OWN, reset("pod1", since=99.0, until=99.9), False),
        (OWN, reset("pod2"), False),
        (OWN, reset(""), False),
        (UNNOTICED, reset(""), True),
        (UNNOTICED, reset("", since=101.1, until=102.0), False),
        (UNNOTICED, reset("pod2"), False),
        (WAY, reset("pod2", kind=REQUEST, since=100.2, until=101.2), True),
        (WAY, reset("pod2", kind=STALL, since=100.2, until=101.2), True),
        (WAY, reset("pod2", since=100.2), False),
    ],
    ids=[
        "a connection of the pod that died",
        "one with a request under way",
        "one that was lost before",
        "another pod's",
        "one that nobody had answered, which may be another's",
        "a new connection while nobody knew",
        "a new one later",
        "an old one of another pod",
        "a datagram to a dead node",
        "a segment that was sent again",
        "a connection is not a packet",
    ],
)
def test_an_excuse_covers_what_it_names_in_its_time(excuse: Excuse, loss: Loss, covered: bool) -> None:
    assert excuse.covers(loss) == covered


def test_a_cell_counts_everything_and_is_explained_when_all_of_it_is() -> None:
    losses = (reset("pod1"), Loss(LOST, "closed", "pod1", 100.5, 100.6), reset("pod1", kind=REQUEST))
    cell = judge(KEY, outcome(*losses), [WAY, OWN], 5.0, tcp=True)
    assert (cell.lost, cell.reset, cell.stalled, cell.requests_lost) == (2, 1, 0, 1)
    assert (cell.good, cell.explained) == (True, "its own")


def test_one_loss_without_an_excuse_makes_a_cell_a_finding() -> None:
    cell = judge(KEY, outcome(reset("pod1"), reset("pod2")), [OWN], 5.0, tcp=True)
    assert (cell.good, cell.explained, cell.unexplained) == (False, "", 1)
    assert cell.examples == ("lost (reset) of pod2 after 0.10 s",)


def test_a_client_without_a_processor_is_late_itself_and_loses_no_connection_by_that() -> None:
    paused = dataclasses.replace(outcome(reset("pod1", kind=STALL)), pauses=[(100.2, 101.4)])
    assert judge(KEY, paused, [], 5.0, tcp=True).explained == BUSY
    paused = dataclasses.replace(outcome(reset("pod1")), pauses=[(100.2, 101.4)])
    assert not judge(KEY, paused, [], 5.0, tcp=True).good


def test_nothing_lost_is_good_and_needs_no_explanation() -> None:
    cell = judge(KEY, outcome(), [OWN], 5.0, tcp=True)
    assert (cell.good, cell.explained, cell.lost) == (True, "", 0)


@pytest.mark.parametrize(("tcp", "good"), [(True, False), (False, True)])
def test_a_connection_that_two_pods_answer_is_a_finding_and_a_flow_of_datagrams_is_not(tcp: bool, good: bool) -> None:
    assert judge(KEY, outcome(moved=1), [], 5.0, tcp=tcp).good == good


def test_cells_come_back_as_they_were_saved(tmp_path: Path) -> None:
    cells = [
        judge(KEY, outcome(reset("pod2")), [], 5.0, tcp=True),
        judge(("a", *KEY[1:]), outcome(), [], 1.0, tcp=True),
    ]
    save(cells, tmp_path / "build" / "faults.json")
    assert load(tmp_path / "build" / "faults.json") == cells
    assert load(tmp_path / "absent.json") == []


def test_another_program_s_cells_are_refused(tmp_path: Path) -> None:
    (tmp_path / "faults.json").write_text('[{"fault": "x"}]')
    with pytest.raises(ValueError, match="--resume"):
        load(tmp_path / "faults.json")


def test_what_is_there_is_not_measured_again() -> None:
    wanted = program._arguments(["--fault", "nothing", "endpoint-killed", "--load", "busy", "idle"])
    found = judge(KEY, outcome(), [], 5.0, tcp=True)
    assert program.groups_left(wanted, {found.key: found}) == [
        ("nothing", "busy", "vxlan-gpe", ("v4", "v6")),
        ("nothing", "idle", "vxlan-gpe", ("v4", "v6")),
        ("endpoint-killed", "busy", "vxlan-gpe", ("v6",)),
        ("endpoint-killed", "idle", "vxlan-gpe", ("v4", "v6")),
    ]


def test_all_faults_and_loads_are_in_the_matrix_and_those_of_several_ingress_nodes_not_with_mpls() -> None:
    groups = program.groups_left(program._arguments(["--mode", "vxlan-gpe", "mpls"]), {})
    assert {group[:2] for group in groups if group[2] == "vxlan-gpe"} == {(f, load) for f in FAULTS for load in LOADS}
    assert {"ingress-cut-off"} & {group[0] for group in groups if group[2] == "mpls"} == set()


def test_a_peer_is_put_to_those_faults_that_it_can_be_put_to() -> None:
    for name, peer in PEERS.items():
        groups = program.groups_left(program._arguments(["--peer", name, "--load", "busy"]), {})
        assert [group[0] for group in groups] == [fault for fault in FAULTS if fault in peer.faults]
        assert set(peer.faults) <= set(FAULTS)


def test_cells_are_shown_in_the_order_of_the_matrix_whenever_they_were_measured() -> None:
    cells = [judge(("nothing", load, "vxlan-gpe", "v4"), outcome(), [], 5.0, tcp=True) for load in LOADS]
    assert program.in_order(reversed(cells)) == cells


def test_the_table_has_a_line_for_each_cell_and_says_each_reason_once() -> None:
    explained = judge(KEY, outcome(reset("pod1")), [OWN], 5.0, tcp=True)
    finding = dataclasses.replace(explained, load="idle", explained="", unexplained=1)
    lines = table([explained, dataclasses.replace(explained, family="v6"), finding]).splitlines()
    assert len(lines) == 1 + 3 + 1
    assert lines[1].endswith("(1)") and lines[2].endswith("(1)") and lines[3].endswith("NOT EXPLAINED: 1")
    assert lines[4] == "(1) its own"


def test_the_grid_adds_families_and_marks_what_is_not_explained() -> None:
    good = judge(KEY, outcome(), [], 5.0, tcp=True)
    cells = [
        dataclasses.replace(good, lost=3, requests_lost=2),
        dataclasses.replace(good, lost=1, family="v6"),
        dataclasses.replace(good, load="udp", requests_lost=7, unexplained=7),
        dataclasses.replace(good, load="udp", fault="nothing"),
    ]
    assert grid(cells).splitlines() == [
        "| vxlan-gpe | busy | udp |",
        "| --- | --- | --- |",
        "| endpoint-killed | 4 of 20 | 7 r ! |",
        "| nothing | – | 0 |",
    ]


def test_the_page_is_well_formed_and_shows_findings_in_another_colour() -> None:
    good = judge(KEY, outcome(), [], 5.0, tcp=True)
    bad = dataclasses.replace(good, load="<idle>", unexplained=2, lost=2, examples=("a & b",))
    picture = ElementTree.fromstring(svg([good, bad]))
    texts = ["".join(text.itertext()) for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"endpoint-killed", "busy", "<idle>", "0", "2 + 0"} <= set(texts)
    colours = [rect.get("fill") for rect in picture.iter("{http://www.w3.org/2000/svg}rect")]
    assert len(set(colours)) == 3  # good, bad, and the bars
    assert "not explained: a &amp; b" in html([good, bad])


def test_bars_grow_with_the_power_of_ten() -> None:
    assert [round(bar_share(seconds), 2) for seconds in (0.0, 0.001, 0.01, 1.0, 100.0, 5000.0)] == [
        0,
        0,
        0.2,
        0.6,
        1,
        1,
    ]


def test_a_cell_has_the_fields_that_are_promised() -> None:
    promised = "fault load mode family open lost reset stalled requests_lost explained".split()
    assert [field.name for field in dataclasses.fields(Cell)][: len(promised)] == promised
