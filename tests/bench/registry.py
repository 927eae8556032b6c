"""Which benchmarks there are: one module per subject, found here and nowhere else.

A subject is a module with two names: `FIGURES`, a table from each figure's name to what it says, and `measure`, which
sets up what the wanted figures need, measures, and takes it down again. A new subject is a new module and its line in
SUBJECTS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from tests.bench import convergence, failover, forwarding, plugin, plugin_burst, routes, scaling, watched
from tests.bench.figures import Figure
from tests.bench.progress import Tell


class Subject(Protocol):
    """What a module of benchmarks offers."""

    FIGURES: Mapping[str, str]
    """Name of a figure to what it says, in a line."""

    def measure(self, wanted: Sequence[str], runs: int, tell: Tell) -> Iterator[Figure]:
        """The wanted ones of FIGURES, each as soon as it is known. `runs` is how many pairs a quick one takes."""


SUBJECTS: tuple[Subject, ...] = (plugin, plugin_burst, routes, convergence, scaling, forwarding, failover, watched)


class UnknownBenchmark(Exception):
    """No figure has this name."""


def names() -> dict[str, str]:
    """Every figure's name and what it says, in the order in which they are measured."""
    return {name: what for subject in SUBJECTS for name, what in subject.FIGURES.items()}


def chosen(patterns: Sequence[str]) -> list[tuple[Subject, list[str]]]:
    """The subjects to run and what is wanted of each; all of them without a pattern.

    A pattern is a name, or a shell's (`plugin-*`). Raises UnknownBenchmark for one that fits no name.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names()):
            raise UnknownBenchmark(f"no benchmark {pattern!r}; there are {', '.join(names())}")
    found = []
    for subject in SUBJECTS:
        wanted = [
            name for name in subject.FIGURES if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
        ]
        if wanted:
            found.append((subject, wanted))
    return found
