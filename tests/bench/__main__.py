"""Measures, prints a table, and writes build/bench.json.

`make bench` runs all of it, `make bench ONLY="plugin-add plugin-*-cold"` what is named.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.figures import Figure, as_json, as_table
from tests.bench.progress import done, tell
from tests.bench.registry import Subject, UnknownBenchmark, chosen, names
from tests.testbed.namespaces import REPOSITORY

RESULT = REPOSITORY / "build" / "bench.json"
RUNS = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all that was wanted was measured, 1 when something was not, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        epilog="benchmarks:\n" + "\n".join(f"  {name:32}{what}" for name, what in names().items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure, also as a pattern; default: all")
    parser.add_argument(
        "--runs",
        type=int,
        default=RUNS,
        metavar="N",
        help="pairs of a quick benchmark, fewer of a long one (%(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, default=RESULT, metavar="FILE", help="where the figures go as JSON (build/bench.json)"
    )
    wanted = parser.parse_args(arguments)
    if wanted.runs < 2:
        parser.error("--runs: at least 2, or there is no spread")
    try:
        subjects = chosen([name for words in wanted.names for name in words.replace(",", " ").split()])
    except UnknownBenchmark as error:
        parser.error(str(error))
    if os.geteuid() != 0:
        print("bench: needs root (network namespaces)", file=sys.stderr)
        return 1
    figures: list[Figure] = []
    missing: list[str] = []
    for subject, only in subjects:
        _measure(subject, only, wanted.runs, figures)
        missing += sorted(set(only) - {figure.name for figure in figures})
    print(as_table(figures))
    wanted.output.parent.mkdir(parents=True, exist_ok=True)
    fresh = wanted.output.with_suffix(".new")
    fresh.write_text(as_json(figures))
    fresh.replace(wanted.output)
    print(f"written to {wanted.output}")
    if missing:
        print(f"bench: not measured: {', '.join(missing)}", file=sys.stderr)
    return 1 if missing else 0


def _measure(subject: Subject, only: Sequence[str], runs: int, figures: list[Figure]) -> None:
    """Adds a subject's figures as they come; one that fails does not keep the others from being measured."""
    try:
        for figure in subject.measure(only, runs, tell):
            figures.append(figure)
            done(f"bench: {figure.name} is done")
    except Exception as error:
        done(f"bench: {type(error).__name__}: {error}")


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
