"""ADD with errors of the kernel, at each call, once or from then on; and killed, with every way to put it right.

What fails tells so in JSON and leaves nothing; what is left where the undoing fails as well, DEL takes away.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator

import pytest

from cni_plugin.tunnel import VXLAN_GPE
from tests.kernel.interruption import EVERY_CALL, Ended, Fault, Site, everywhere, sites
from tests.kernel.test_plugin_killed import REPAIRS, kill_add_everywhere

RECORD = frozenset({"mkdir", "open", "write", "rename"})
"""The calls that need room on the disk of the records."""


@pytest.fixture(scope="module")
def several() -> Iterator[list[Site]]:
    with sites(VXLAN_GPE, 3, Site) as made:
        yield made


def told(ended: Ended) -> str:
    """What is wrong with the answer of a failed ADD; empty when nothing is."""
    try:
        error = json.loads(ended.text)
        return "" if error["msg"] and error["code"] and ended.status == 1 else f"status {ended.status}: {error}"
    except (ValueError, KeyError):
        return f"status {ended.status}, {ended.text!r} is no error"


def calls_of(site: Site, counted: frozenset[str]) -> tuple[str, ...]:
    calls = site.run("ADD", Fault(0, counted=counted)).calls
    site.succeed("DEL")
    return calls


def test_whatever_a_killed_add_leaves_is_put_right_by_any_verb_alone(several: list[Site]) -> None:
    kill_add_everywhere(several, lambda _: REPAIRS)


def test_any_call_that_fails_leaves_nothing_or_all(several: list[Site]) -> None:
    calls = calls_of(several[0], EVERY_CALL)
    assert {"recv", "connect", "setns", "bind", "rename"} <= set(calls)

    def failing(site: Site, number: int) -> str:
        ended = site.run("ADD", Fault(number, errno.EIO))
        here = ended.calls[number - 1 :] or ("nothing",)  # no run has just as many calls as the one before
        if here == ("write",) and not ended.text:
            said = "" if ended.status == 1 else f"status {ended.status}"  # the runtime got no answer, it calls DEL
        elif ended.status == 0:
            said = site.differs(site.full)
        elif here[0] == "setns" and "setns" in ended.calls[: number - 1]:
            said = told(ended)  # caught in the pod's namespace, it cannot undo anything; DEL can
        else:
            said = told(ended) or site.differs(site.empty)
        site.succeed("DEL")
        said = said or site.differs(site.empty)
        return said and f"call {number} ({here[:1]}) fails: {ended.text!r} {said}"

    everywhere(several, len(calls), failing)


@pytest.mark.parametrize(
    ("number_of_error", "calls"),
    [(errno.EPERM, EVERY_CALL - RECORD), (errno.EDQUOT, RECORD)],
    ids=["kernel", "quota"],
)
def test_what_does_not_work_any_more_from_some_call_on_leaves_what_del_and_gc_take_away(
    several: list[Site], number_of_error: int, calls: frozenset[str]
) -> None:
    """The undoing fails, too."""
    names = calls_of(several[0], calls)

    def failing(site: Site, number: int) -> str:
        ended = site.run("ADD", Fault(number, number_of_error, lasting=True, counted=calls))
        said = "" if ended.status == 0 or not ended.text else told(ended)
        site.succeed("DEL" if number % 2 else "GC")
        said = said or site.differs(site.empty)
        return said and f"from call {number} ({names[number - 1]}) on: {ended.text!r} {said}"

    everywhere(several, len(names), failing)
