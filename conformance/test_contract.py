"""Each case of the CNI contract with each profile's plugin."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing

import pytest

from conformance.conftest import HERE, PROFILES, Worlds
from conformance.contract.calls import SUCCESS, VERSIONS, Call, result
from conformance.contract.cases import all_cases, described
from conformance.contract.examine import examine
from conformance.contract.fault import Case
from conformance.contract.profile import Profile, load
from conformance.contract.verdict import faults_of_table, judge
from conformance.contract.world import World

AT_ONCE = 8


def test_a_plugin_does_what_the_specification_says_or_differs_as_is_known(
    profile: Profile, case: Case, world: World, record_property: Callable[[str, object], None]
) -> None:
    findings = examine(case, world)
    verdict = judge(profile, case, findings)
    record_property("examined", profile.name)
    for line in verdict.explained:
        record_property("explained", f"{profile.name}\n{line.why}")
    if verdict.complaints:
        pytest.fail("\n".join([described(case), *verdict.complaints]), pytrace=False)


def test_containers_may_be_added_and_deleted_at_once(profile: Profile, world: World, worlds: Worlds) -> None:
    with ExitStack() as stack:
        pods = [stack.enter_context(closing(worlds.another(world))) for _ in range(AT_ONCE)]
        for verb in ("ADD", "DEL"):
            calls = [call_for(world, pod, verb, number) for number, pod in enumerate(pods)]
            replies = world.perform_at_once(calls)
            assert [reply.outcome for reply in replies] == [SUCCESS] * AT_ONCE, [reply.stdout for reply in replies]
            if verb == "ADD":
                assert [reply.documents for reply in replies] == [(call.config["prevResult"],) for call in calls]
    assert not any(line.startswith("file ") for line in world.view() - world.untouched)


def call_for(node: World, pod: World, verb: str, number: int) -> Call:
    """A call for another pod of the same node: its namespace, the node's folders."""
    call = node.call(verb, VERSIONS[-1])
    call.environ |= {"CNI_CONTAINERID": f"container-{number}", "CNI_NETNS": pod.netns}
    call.config["prevResult"] = result(VERSIONS[-1], pod.netns)
    return call


def test_the_table_of_differences_is_about_cases_that_there_are(profile: Profile) -> None:
    assert faults_of_table(profile, all_cases()) == []


def test_each_known_difference_is_described() -> None:
    page = (HERE.parent / "docs" / "conformance.md").read_text()
    lines = [line for path in PROFILES.glob("*.toml") for line in load(path).differences]
    absent = [line for line in lines if f"| {line.why} | `{line.aspect}` |" not in page]
    assert lines
    assert not absent


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in all_cases()]
    assert sorted(set(names)) == sorted(names)
