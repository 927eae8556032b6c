"""Runs the fault matrix, prints it as a table, writes build/faults.json and build/faults.html.

`make faults` runs all of it in mode vxlan-gpe; the other modes need a kernel that has them:
`.venv/bin/python -m tests.vm --limit=20000 -- python -m tests.faults --mode gre --connections 50`.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from cni_plugin.tunnel import MODES, VXLAN_GPE
from tests.bench.progress import done, tell
from tests.faults import cells
from tests.faults.cells import Cell, Key, judge
from tests.faults.faults import FAULTS
from tests.faults.grid import grid
from tests.faults.loads import FAMILIES, LOADS, Running
from tests.faults.page import html
from tests.faults.peers import PEERS
from tests.faults.stage import Stage
from tests.kernel_features import lacking_modes
from tests.testbed.namespaces import REPOSITORY

RESULT = REPOSITORY / "build" / "faults.json"
CONNECTIONS = 2000
LEAD, TAIL = 1.0, 1.5
"""Seconds for which the loads run before and after."""
Group = tuple[str, str, str, tuple[str, ...]]
"""Fault, load, mode, families: what is measured at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every cell is 0 or explained, 1 when one is not, or could not be measured, 2 for wrong arguments."""
    wanted = _arguments(arguments)
    if os.geteuid() != 0:
        print("faults: needs root (network namespaces)", file=sys.stderr)
        return 2
    lacking = [mode for mode in wanted.mode if mode in lacking_modes()]
    if lacking:
        print(f"faults: this kernel lacks {', '.join(lacking)}; see --help for the virtual machine", file=sys.stderr)
        return 2
    try:
        found = {cell.key: cell for cell in cells.load(wanted.output)} if wanted.resume else {}
    except ValueError as error:
        print(f"faults: {error}", file=sys.stderr)
        return 2
    groups = groups_left(wanted, found)
    failed = []
    try:
        for group, measured in _measured(groups, wanted):
            if isinstance(measured, Exception):
                failed.append(f"{' '.join(group[:3])}: {type(measured).__name__}: {str(measured)[:1500]}")
                done(f"faults: {failed[-1]}")
                continue
            for cell in measured:
                found[cell.key] = cell
                done(cells.line(cell))
            cells.save(in_order(found.values()), wanted.output)
    finally:
        if found:
            wanted.output.with_suffix(".html").write_text(html(in_order(found.values())))
    print(f"\n{cells.table(in_order(found.values()))}\n\n{grid(in_order(found.values()))}\n")
    print(f"kernel {platform.release()}, {os.cpu_count()} processors; written to {wanted.output}")
    bad = [cell for cell in found.values() if not cell.good]
    for cell in bad:
        print(f"not explained: {cells.line(cell)}: {'; '.join(cell.examples)}")
    if failed:
        print(f"faults: not measured: {len(failed)}\n" + "\n".join(failed), file=sys.stderr)
    return 1 if bad or failed else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    def listed(name: str, kinds: Mapping[str, str]) -> str:
        return f"{name}:\n" + "\n".join(f"  {key:30}{what}" for key, what in kinds.items())

    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        epilog="\n".join(
            (
                listed("faults", {name: fault.what for name, fault in FAULTS.items()}),
                listed("loads", {name: load.what for name, load in LOADS.items()}),
                listed("peers", {name: peer.what for name, peer in PEERS.items()}),
            )
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, choices, usual in (
        ("fault", list(FAULTS), list(FAULTS)),
        ("load", list(LOADS), list(LOADS)),
        ("mode", list(MODES), [VXLAN_GPE]),
        ("family", list(FAMILIES), list(FAMILIES)),
    ):
        parser.add_argument(
            f"--{name}", nargs="+", choices=choices, default=usual, metavar=name.upper(),
            help=f"only these (default: {'all' if usual == choices else usual[0]})",
        )  # fmt: skip
    parser.add_argument(
        "--connections", type=int, default=CONNECTIONS, metavar="N", help="of each family (%(default)s)"
    )
    parser.add_argument(
        "--minute", type=float, default=60.0, metavar="SECONDS", help="how long the API is away (%(default)s)"
    )
    parser.add_argument("--peer", choices=list(PEERS), metavar="PEER", help="measure another's way instead: to compare")
    parser.add_argument("--resume", action="store_true", help="go on: cells that are in the output are not done again")
    parser.add_argument("--output", type=Path, default=RESULT, metavar="FILE", help="JSON; the page is put beside it")
    wanted = parser.parse_args(arguments)
    if wanted.connections < 1:
        parser.error("--connections: at least 1")
    return wanted


def in_order(found: Iterable[Cell]) -> list[Cell]:
    """As the matrix names them, whenever they were measured."""
    axes: tuple[Sequence[str], ...] = (MODES, list(FAULTS), list(LOADS), list(FAMILIES))

    def place(cell: Cell) -> tuple[int, ...]:
        names = (cell.mode, cell.fault, cell.load, cell.family)
        return tuple(axis.index(name) for axis, name in zip(axes, names, strict=True))

    return sorted(found, key=place)


def groups_left(wanted: argparse.Namespace, found: Mapping[Key, Cell]) -> list[Group]:
    """What is to be measured, by modes and faults, so that scenes are shared; families together."""
    groups = []
    possible = PEERS[wanted.peer].faults if wanted.peer else list(FAULTS)
    for mode in wanted.mode:
        for fault in [fault for fault in wanted.fault if fault in possible]:
            for load in wanted.load:
                families = tuple(f for f in wanted.family if (fault, load, mode, f) not in found)
                if mode in FAULTS[fault].modes and families:
                    groups.append((fault, load, mode, families))
    return groups


def _measured(groups: Sequence[Group], wanted: argparse.Namespace) -> Iterator[tuple[Group, list[Cell] | Exception]]:
    """Each group's cells, or why there are none; a scene serves for as long as it is whole."""
    stage: Stage | None = None
    began = time.monotonic()
    try:
        for number, group in enumerate(groups):
            fault, load, mode, _ = group
            left = (time.monotonic() - began) / number * (len(groups) - number) / 60 if number else 0.0
            tell(f"{number + 1} of {len(groups)}: {fault}, {load}, {mode}" + (f"; {left:.0f} min left" if left else ""))
            try:
                if stage is not None and stage.mode != mode:
                    stage.close()
                    stage = None
                stage = stage or _stage(mode, wanted)
                yield group, measure(stage, group, wanted.connections)
                if not FAULTS[fault].leaves_traces:
                    stage.make_whole()
                    continue
            except Exception as error:
                yield group, error
            if stage is not None:
                stage.close()
                stage = None
    finally:
        if stage is not None:
            stage.close()


def _stage(mode: str, wanted: argparse.Namespace) -> Stage:
    if wanted.peer:
        return PEERS[wanted.peer].stage(mode, wanted.minute)
    return Stage(mode, minute=wanted.minute)


def measure(stage: Stage, group: Group, connections: int) -> list[Cell]:
    """One fault under one load, in all families at once. Raises TestbedError when something does not come about."""
    fault, load, mode, families = group
    kind = LOADS[load]
    steps = FAULTS[fault].act(stage)
    try:
        next(steps)
        with ExitStack() as stack:
            running = [
                stack.enter_context(Running(stage.scene.cluster, kind, family, connections)) for family in families
            ]
            for each in running:
                each.wait_ready()
            stage.loads = running
            stage.go_on(LEAD)
            next(steps)
            stage.go_on(TAIL)
            for each in running:
                each.end()
            outcomes = [each.outcome() for each in running]
            seconds = time.monotonic() - running[0].began
        next(steps, None)
    finally:
        stage.loads = []
        steps.close()
    return [
        judge((fault, load, mode, family), outcome, stage.excuses, seconds, tcp=kind.tcp)
        for family, outcome in zip(families, outcomes, strict=True)
    ]


def _interruptible(run: Callable[[], int]) -> int:
    """The first SIGINT or SIGTERM ends the run; taking the scene down is not interrupted any more."""

    def interrupt(number: int, _: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, interrupt)
    try:
        return run()
    except KeyboardInterrupt as interrupted:
        print("faults: interrupted; what was measured is kept, --resume goes on", file=sys.stderr)
        return 128 + int(interrupted.args[0])


if __name__ == "__main__":
    raise SystemExit(_interruptible(main))
