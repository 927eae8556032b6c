"""Runs one target for a number of inputs, half a second or all night, and collects what it finds."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from types import FrameType

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import Target

_BATCH = 250
"""Inputs from the grammar at a time."""
_MUTATIONS = 40
"""Of each of them; hypothesis makes a thousand inputs in a second, damage to them costs nearly nothing."""
_CORPUS = 2000
"""Inputs from which mutations borrow parts."""
_PATIENCE = 10
"""Seconds for one input, the batch of mutations around it included: more is a hang."""


class Hang(Exception):
    """A check that did not come to an end."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An input for which something else came out than promised."""

    body: bytes
    what: str
    """The traceback's end."""


@dataclass(slots=True)
class Result:
    inputs: int = 0
    taken: int = 0
    """Of these, what was no rubbish to the parser."""
    seconds: float = 0.0
    findings: dict[str, Finding] = field(default_factory=dict)
    """By the place where it went wrong: one input each."""


def from_grammar(grammar: st.SearchStrategy[bytes], seed: int, count: int) -> list[bytes]:
    """That many inputs, or fewer where the grammar has not as many; the same for the same seed."""
    found: list[bytes] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(grammar)
    def collect(body: bytes) -> None:
        found.append(body)

    collect()
    return found


def run(target: Target, seed: int, count: int, seconds: float = float("inf")) -> Result:
    """Until `count` inputs are through, or the time is over; at least one batch."""
    random = Random(seed)
    result = Result()
    corpus: list[bytes] = [b""]
    began = time.monotonic()
    while result.inputs < count and (result.inputs == 0 or time.monotonic() - began < seconds):
        for body in from_grammar(target.grammar, random.getrandbits(64), _BATCH):
            corpus.append(body)
            with _alarm():
                _try(target.check, body, result)
                for _ in range(_MUTATIONS):
                    if result.inputs < count:
                        _try(target.check, mutated(body, random, corpus), result)
            if result.inputs >= count:
                break
        corpus = random.sample(corpus, min(len(corpus), _CORPUS))
    result.seconds = time.monotonic() - began
    return result


def _try(check: Callable[[bytes], bool], body: bytes, result: Result) -> None:
    result.inputs += 1
    try:
        result.taken += check(body)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        key = f"{type(error).__name__} in {place.name}, line {place.lineno} of {place.filename}"
        if key not in result.findings:
            result.findings[key] = Finding(body, "".join(traceback.format_exception(error)[-3:]))


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(_: int, __: FrameType | None) -> None:
        raise Hang(f"no end after {_PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
