"""`python -m tests.fuzz [TARGET …]`: fuzz the parsers, print what went through, save what went wrong."""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
from pathlib import Path

from tests.fuzz.campaign import Result, run
from tests.fuzz.targets import TARGETS

FINDINGS = Path(__file__).parents[2] / "build" / "fuzz"


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; none: all")
    parser.add_argument("--count", type=int, default=20_000, help="inputs for each target (%(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each target at most")
    parser.add_argument("--seed", type=int, default=None, help="the same inputs again; none: others each time")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="only this input, as saved; its name says the target"
    )
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    return chosen


def main(arguments: list[str]) -> int:
    chosen = _arguments(arguments)
    if chosen.replay:
        TARGETS[chosen.replay.name.partition("-")[0]].check(chosen.replay.read_bytes())
        print("nothing wrong")
        return 0
    seed = random.getrandbits(32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}\n{'target':<12}{'inputs':>12}{'taken':>7}{'seconds':>9}{'a second':>10}{'findings':>10}")
    results: dict[str, Result] = {}
    for name in chosen.targets or TARGETS:
        results[name] = run(TARGETS[name], seed, chosen.count, chosen.seconds)
        _row(name, [results[name]])
        _save(name, results[name])
    _row("all", list(results.values()))
    return 1 if any(result.findings for result in results.values()) else 0


def _row(name: str, results: list[Result]) -> None:
    inputs, seconds = sum(result.inputs for result in results), sum(result.seconds for result in results)
    taken = sum(result.taken for result in results) / inputs
    found = sum(len(result.findings) for result in results)
    print(f"{name:<12}{inputs:>12,}{taken:>7.0%}{seconds:>9.1f}{inputs / seconds:>10,.0f}{found:>10}", flush=True)


def _save(name: str, result: Result) -> None:
    for key, finding in result.findings.items():
        FINDINGS.mkdir(parents=True, exist_ok=True)
        file = FINDINGS / f"{name}-{hashlib.sha256(finding.body).hexdigest()[:12]}"
        file.write_bytes(finding.body)
        print(f"\n{name}: {key}\n{finding.what}\n{finding.body[:200]!r}\nagain: python -m tests.fuzz --replay {file}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
