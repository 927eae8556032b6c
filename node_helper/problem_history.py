"""What was wrong with which object since when, also what has passed: for `status`, for counters, and for the log.

A Service whose pods come and go makes a problem that comes and goes several times a second. Each time counts, the last
ones are remembered with their times, but the log gets a few lines of it at once and then one a minute: what stands in
it last is how it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from node_helper.log_limits import LineLimit
from node_helper.model import ObjectKey, Problem

REMEMBERED = 1000
"""Problems that have passed, at most; the oldest are forgotten first."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One problem's times, as seconds since the epoch."""

    problem: Problem
    since: float
    """When it came, the last time that it did."""
    passed: float | None = None
    """When it went; None: it stands."""
    times: int = 1
    """How often it came since it was last forgotten."""


@dataclass(frozen=True, slots=True)
class ProblemNews:
    """What one look at all problems found new."""

    came: tuple[Problem, ...]
    """For counters and Events: every one that was not there at the last look."""
    say_came: tuple[tuple[Problem, int], ...]
    """For the log, each with how many times it came unsaid before."""
    say_passed: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class ProblemTimes:
    """The history at one moment; of both the latest first."""

    standing: tuple[Occurrence, ...] = ()
    passed: tuple[Occurrence, ...] = ()


class ProblemHistory:
    """Follows the problems from cycle to cycle."""

    def __init__(self, clock: Callable[[], float] = time.time, limit: LineLimit | None = None) -> None:
        self._clock = clock
        self._limit = limit or LineLimit()
        self._standing: dict[Problem, Occurrence] = {}
        self._passed: dict[Problem, Occurrence] = {}
        """In the order in which they went."""
        self._said: set[Problem] = set()
        """What the log says that it is so."""
        self._unsaid: dict[Problem, int] = {}

    def note(self, problems: Iterable[Problem]) -> ProblemNews:
        """The problems that there are now; returns what is new of them."""
        now, present = self._clock(), frozenset(problems)
        came = sorted(present - self._standing.keys())
        for problem in came:
            before = self._passed.pop(problem, None)
            self._standing[problem] = Occurrence(problem, now, times=1 if before is None else before.times + 1)
            self._unsaid[problem] = self._unsaid.get(problem, 0) + 1
        for problem in sorted(self._standing.keys() - present):
            self._passed[problem] = replace(self._standing.pop(problem), passed=now)
        while len(self._passed) > REMEMBERED:
            del self._passed[next(iter(self._passed))]
        return ProblemNews(tuple(came), *self._to_say(present))

    def _to_say(self, present: frozenset[Problem]) -> tuple[tuple[tuple[Problem, int], ...], tuple[Problem, ...]]:
        say_came = tuple(
            (problem, self._unsaid.pop(problem, 1) - 1)
            for problem in sorted(present - self._said)
            if self._limit.allows(_subject(problem))
        )
        say_passed = tuple(problem for problem in sorted(self._said - present) if self._limit.allows(_subject(problem)))
        self._said.update(problem for problem, _ in say_came)
        self._said.difference_update(say_passed)
        for problem in self._unsaid.keys() - present - self._said:
            # It went before anything was said of it: the next time says how often that was.
            if problem not in self._passed:
                del self._unsaid[problem]
        return say_came, say_passed

    def times(self) -> ProblemTimes:
        """What is wrong now, and what was lately and is no more."""
        standing = sorted(self._standing.values(), key=lambda one: (-one.since, one.problem))
        return ProblemTimes(tuple(standing), tuple(reversed(self._passed.values())))


def _subject(problem: Problem) -> tuple[str, ObjectKey, str]:
    return problem.kind, problem.key, problem.reason
