"""A `Case` is one call and what has to be seen of it; a `Fault` makes the cases of one way of spoiling a call.

Where the specification leaves a choice, more than one outcome is listed: "may" is not made a "must" here. Rules name
the section of the specification 1.1.0, or what libcni and its plugin library do where that is what runtimes rely on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from conformance.contract.calls import VERSIONS, Call, speaks

Spoil = Callable[[Call], None]

EVERY = VERSIONS
NEWEST = VERSIONS[-1:]
ENDS = (VERSIONS[0], "0.4.0", VERSIONS[-1])
"""The first version of everything, of CHECK, and the last."""

ATTACHMENT = ("ADD", "DEL", "CHECK")
CONFIGURED = ("ADD", "DEL", "CHECK", "GC", "STATUS")

MISSING, NO_JSON, WRONG = "code 4", "code 6", "code 7"
PARAMETERS = "section 2, Parameters; code 4: the message must contain the names of invalid variables"
ERROR_CODES = "section 5, Error: code 6, content cannot be decoded"
CONFIGURATION = "section 5, Error: code 7, invalid network config"
BEST_EFFORT = "section 2, DEL: best-effort, complete without error even if resources or state are missing"

AS_BEFORE = "as before"
"""Namespace and files are as they were before the call."""
AS_FOUND = "as found"
"""Namespace and files are as they were before ADD."""
FILES_AS_FOUND = "files as found"
"""The files are; the namespace could not be reached."""

NOTHING, PREV_RESULT, SUPPORTED = "nothing", "prevResult", "supported versions"
OUTPUT = {"ADD": PREV_RESULT, "VERSION": SUPPORTED}
"""What is on stdout after success; nothing for the other verbs."""
LEAVES = {"ADD": "", "DEL": AS_FOUND}
"""What success leaves behind; the other verbs change nothing."""


@dataclass(frozen=True)
class Case:
    """One call that is to be made, and what has to be seen of it."""

    verb: str
    version: str
    fault: str
    spoil: Spoil
    outcomes: tuple[str, ...]
    """Those that the rule allows."""
    rule: str
    names: tuple[str, ...] = ()
    """What the error has to name, where it is one."""
    before: tuple[str, ...] = ()
    """Right calls that are made first."""
    output: str = NOTHING
    leaves: str = AS_BEFORE
    """After success; after an error all is as before."""

    @property
    def name(self) -> str:
        return f"{self.verb} {self.version}: {self.fault}"


@dataclass(frozen=True)
class Fault:
    """One way of spoiling a call."""

    text: str
    spoil: Spoil
    outcomes: tuple[str, ...]
    rule: str
    verbs: tuple[str, ...]
    versions: tuple[str, ...] = EVERY
    names: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    output: str | None = None
    leaves: str | None = None

    def cases(self) -> Iterator[Case]:
        for verb in self.verbs:
            for version in self.versions:
                if speaks(version, verb):
                    output = OUTPUT.get(verb, NOTHING) if self.output is None else self.output
                    leaves = LEAVES.get(verb, AS_BEFORE) if self.leaves is None else self.leaves
                    yield Case(
                        *(verb, version, self.text, self.spoil, self.outcomes, self.rule),
                        names=self.names,
                        before=self.before,
                        output=output,
                        leaves=leaves,
                    )
