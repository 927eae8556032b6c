"""What was found, held against the table of known differences: a case passes when it differs exactly as is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from conformance.contract.examine import Findings
from conformance.contract.fault import Case
from conformance.contract.profile import Difference, Profile

ASPECTS = ("outcome", "names", "error", "output", "result", "left")


@dataclass
class Verdict:
    """Nothing to complain of: the case passes."""

    complaints: list[str] = field(default_factory=list)
    explained: list[Difference] = field(default_factory=list)
    """Lines of the table that were seen to hold."""


def judge(profile: Profile, case: Case, findings: Findings) -> Verdict:
    """Each finding is as the rule has it, or as a line of the profile's table says."""
    verdict = Verdict()
    for aspect, seen in findings.items():
        line = next((line for line in profile.differences if line.covers(case.name, aspect)), None)
        if line is None:
            if seen:
                verdict.complaints.append(f"{aspect}: {seen}")
        elif seen == line.seen:
            verdict.explained.append(line)
        elif seen:
            verdict.complaints.append(f"{aspect}: {seen}\nbut the difference that is known is: {line.seen}")
        else:
            verdict.complaints.append(f"{aspect}: as it should be; take this out of the table: {line.why}")
    return verdict


def faults_of_table(profile: Profile, cases: Iterable[Case]) -> list[str]:
    """Lines that are about no case, or about what another line is about already."""
    faults = []
    about: dict[tuple[str, str], Difference] = {}
    names = [case.name for case in cases]
    for line in profile.differences:
        covered = [name for name in names if line.covers(name, line.aspect)]
        if line.aspect not in ASPECTS:
            faults.append(f"no such aspect: {line.aspect}")
        elif not covered:
            faults.append(f"about no case: {', '.join(line.cases)}")
        for name in covered:
            other = about.setdefault((name, line.aspect), line)
            if other is not line:
                faults.append(f"two lines about {line.aspect} of {name}")
                break
    return faults
