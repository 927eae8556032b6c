"""Problems are remembered with their times, and the log stays readable where one comes and goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node_helper.log_limits import LineLimit
from node_helper.model import ObjectKey, Problem
from node_helper.problem_history import REMEMBERED, ProblemHistory

FLAPPING = Problem("Service", ObjectKey("shop", "web"), "NoEndpoints", "none of its 3 endpoints is ready")
OTHER = Problem("Service", ObjectKey("shop", "api"), "InvalidVIP", "'x' is no IP address")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def history(burst: int = 4) -> tuple[ProblemHistory, Clock]:
    clock = Clock()
    return ProblemHistory(clock, LineLimit(burst, 60.0, clock)), clock


def test_what_comes_and_what_goes_is_said_once() -> None:
    kept, _ = history()
    assert kept.note([FLAPPING]).say_came == ((FLAPPING, 0),)
    again = kept.note([FLAPPING])
    assert (again.came, again.say_came, again.say_passed) == ((), (), ())
    assert kept.note([]).say_passed == (FLAPPING,)


def test_a_problem_that_comes_and_goes_a_hundred_times_a_minute_has_a_few_lines() -> None:
    kept, clock = history()
    lines = 0
    for number in range(200):
        news = kept.note([FLAPPING] if number % 2 == 0 else [])
        lines += len(news.say_came) + len(news.say_passed)
        clock.now += 0.3
    assert lines <= 5
    (passed,) = kept.times().passed
    assert passed.times == 100


def test_another_problem_is_not_kept_quiet_by_a_flapping_one() -> None:
    kept, _ = history()
    for number in range(50):
        kept.note([FLAPPING] if number % 2 == 0 else [])
    assert kept.note([OTHER]).say_came == ((OTHER, 0),)


def test_what_was_not_said_is_counted_when_it_is_said_again() -> None:
    kept, clock = history(burst=1)
    assert kept.note([FLAPPING]).say_came == ((FLAPPING, 0),)
    for _ in range(3):
        kept.note([])
        kept.note([FLAPPING])
    kept.note([])
    clock.now += 61
    assert kept.note([]).say_passed == (FLAPPING,)
    clock.now += 61
    assert kept.note([FLAPPING]).say_came == ((FLAPPING, 3),)


def test_every_appearance_is_told_to_counters_and_events() -> None:
    kept, _ = history()
    assert [len(kept.note([FLAPPING] if n % 2 == 0 else []).came) for n in range(100)] == [1, 0] * 50


@given(st.lists(st.tuples(st.sets(st.sampled_from([FLAPPING, OTHER])), st.floats(0, 100)), max_size=40))
def test_what_the_log_says_last_is_how_it_is_a_while_later(steps: list[tuple[set[Problem], float]]) -> None:
    kept, clock = history(burst=2)
    said: set[Problem] = set()

    def note(problems: set[Problem]) -> None:
        news = kept.note(problems)
        for problem, _ in news.say_came:
            assert problem not in said
            said.add(problem)
        for problem in news.say_passed:
            assert problem in said
            said.remove(problem)

    last: set[Problem] = set()
    for last, pause in steps:
        note(last)
        clock.now += pause
    for _ in range(3):
        clock.now += 61
        note(last)
    assert said == last
    assert {one.problem for one in kept.times().standing} == last


def test_of_what_has_passed_the_latest_thousand_are_remembered() -> None:
    kept, clock = history()
    for number in range(REMEMBERED + 500):
        kept.note([Problem("Service", ObjectKey("shop", str(number)), "NoEndpoints", "none")])
        clock.now += 1
    passed = kept.times().passed
    assert len(passed) == REMEMBERED
    assert passed[0].problem.key.name == str(REMEMBERED + 498)
    assert len(kept._unsaid) <= REMEMBERED + 1
