"""ADD, killed before each of its calls into the kernel: what is left is what DEL, GC or the next ADD puts right.

And DEL and GC killed in the same way, which are then called again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.kernel.interruption import CHANGES, Fault, Site, everywhere, sites

PARALLEL = 3
REPAIRS = ("DEL", "GC", "ADD")
FEWEST, MORE = 0.8, 5
"""A run has not always as many calls as the one before: the plugin waits for the kernel by asking, once or more often.
So calls beyond the first run's last are tried too, and a run may end before it is killed when most have been seen."""


@pytest.fixture(scope="module")
def several(mode: str) -> Iterator[list[Site]]:
    with sites(mode, PARALLEL, Site) as made:
        yield made


def changes_of(site: Site, verb: str) -> tuple[str, ...]:
    """The calls of one undisturbed run that may change something."""
    calls = site.run(verb, Fault(0, counted=CHANGES)).calls
    assert {"open", "write", "rename", "send", "setns", "sendall"} <= set(calls) or verb != "ADD"
    return calls


def repaired(site: Site, by: str) -> str:
    """What is not as it should be after one call of that verb; leaves the site empty."""
    site.succeed(by)
    wrong = site.differs(site.full if by == "ADD" else site.empty)
    if by == "ADD":
        site.succeed("DEL")
        wrong += site.differs(site.empty)
    return wrong


def kill_add_everywhere(several: list[Site], verbs: Callable[[int], Sequence[str]]) -> None:
    """ADD killed before each change; then each of `verbs` for that number alone, after an ADD of its own."""
    calls = changes_of(several[0], "ADD")
    several[0].succeed("DEL")

    def killed(site: Site, number: int) -> str:
        said = ""
        for verb in verbs(number):
            ended = site.run("ADD", Fault(number, counted=CHANGES))
            assert ended.status is None or number > FEWEST * len(calls), ended
            wrong = repaired(site, verb)
            if wrong:
                said += f"ADD killed before call {number} ({calls[number - 1 : number]}), then {verb}: {wrong}\n"
        return said

    everywhere(several, len(calls) + MORE, killed)


def test_whatever_a_killed_add_leaves_is_put_right(several: list[Site]) -> None:
    """By one verb for each call, by turns; all three for each are in `test_plugin_faults`, for one mode."""
    kill_add_everywhere(several, lambda number: (REPAIRS[number % 3],))


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_a_del_or_gc_that_was_killed_is_called_again(several: list[Site], verb: str) -> None:
    several[0].succeed("ADD")
    calls = changes_of(several[0], verb)

    def killed(site: Site, number: int) -> str:
        site.succeed("ADD")
        ended = site.run(verb, Fault(number, counted=CHANGES))
        assert ended.status is None or number > FEWEST * len(calls), ended
        wrong = repaired(site, REPAIRS[number % 3])
        return wrong and f"{verb} killed before call {number} ({calls[number - 1 : number]}): {wrong}"

    everywhere(several, len(calls) + MORE, killed)
