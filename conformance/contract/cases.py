"""The whole table: verb x version x fault, and calls with nothing wrong in them."""

from __future__ import annotations

from collections.abc import Iterator

from conformance.contract.calls import SUCCESS, VERBS, VERSIONS, speaks
from conformance.contract.configuration import CONFIG, STDIN
from conformance.contract.environment import ENVIRONMENT, NAMESPACE
from conformance.contract.fault import AS_BEFORE, BEST_EFFORT, EVERY, NEWEST, Case, Fault
from conformance.contract.spoiling import config, environ, right, stdin

CYCLE = "section 3, Lifecycle & Ordering"

RIGHT = (
    Fault("right", right, (SUCCESS,), "section 2", ("ADD",)),
    Fault("right", right, (SUCCESS,), CYCLE, ("DEL", "CHECK", "GC", "STATUS"), before=("ADD",)),
    Fault("a second time", right, (SUCCESS,), "section 2, DEL: accept multiple DEL", ("DEL",), before=("ADD", "DEL")),
    Fault("never added", right, (SUCCESS,), BEST_EFFORT, ("DEL",)),
    Fault("never added", right, (SUCCESS,), "section 2, GC, STATUS", ("GC", "STATUS")),
    Fault(
        "a second time", right, (SUCCESS,), CYCLE, ("ADD", "CHECK"), before=("ADD", "DEL", "ADD", "CHECK", "DEL", "ADD")
    ),
    Fault(
        "after GC that lists it",
        right,
        (SUCCESS,),
        "section 2, GC: still valid",
        ("CHECK",),
        NEWEST,
        before=("ADD", "GC"),
    ),
    Fault(
        "of another network",
        config(name="another", valid_attachments=[]),
        (SUCCESS,),
        "section 2, GC: attachments to this network",
        ("GC",),
        NEWEST,
        before=("ADD",),
    ),
    Fault(
        "of another interface",
        environ(IFNAME="eth1"),
        (SUCCESS,),
        "section 3: an attachment is a container and an interface",
        ("DEL",),
        EVERY,
        before=("ADD",),
        leaves=AS_BEFORE,
    ),
    Fault("right", right, (SUCCESS,), "section 2, VERSION", ("VERSION",)),
    *(
        Fault(
            f"stdin {text}", stdin(body), (SUCCESS,), "libcni's plugin library does not read it", ("VERSION",), NEWEST
        )
        for text, body in (
            ("closed", "closed"),
            ("silent", "silent"),
            ("empty", b""),
            ("no JSON", b"{"),
            ("of an unknown version", b'{"cniVersion":"9.9.9"}'),
        )
    ),
    Fault(
        "other variables wrong",
        environ(CONTAINERID="../a", IFNAME="a/b", NETNS="/nowhere", ARGS="=", PATH=None),
        (SUCCESS,),
        "section 2, VERSION: CNI_COMMAND is all it needs",
        ("VERSION",),
        NEWEST,
    ),
)


def _verbs_before_their_version() -> Iterator[Case]:
    for verb in VERBS:
        for version in VERSIONS:
            if not speaks(version, verb):
                rule = "section 5, Error: code 1; the version has no such verb"
                yield Case(verb, version, "before it came", right, ("code 1",), rule)


def all_cases() -> list[Case]:
    """The whole table, in a fixed order; names are unique."""
    faults = (*RIGHT, *ENVIRONMENT, *NAMESPACE, *STDIN, *CONFIG)
    found = [case for fault in faults for case in fault.cases()]
    return [*found, *_verbs_before_their_version()]


def described(case: Case) -> str:
    """The case in one line."""
    naming = f", naming {' and '.join(case.names)}" if case.names else ""
    return f"{case.name} -> {' or '.join(case.outcomes)}{naming} ({case.rule})"
