"""Runs one case on a plugin and says in which aspects the plugin is otherwise than the rule has it.

Aspects, each judged only where it means something (what follows from a wrong outcome is not told twice):

    outcome   success or the error's code
    names     an error names what is wrong
    error     an error is one JSON object with its four keys and the configuration's version
    output    after success stdout holds one JSON object, or nothing where nothing is due
    result    what ADD and VERSION print
    left      nothing half-done stays in the namespace or the folders
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conformance.contract.calls import SUCCESS, VERSIONS, Call, Reply, speaks
from conformance.contract.fault import AS_FOUND, FILES_AS_FOUND, MISSING, NOTHING, PREV_RESULT, SUPPORTED, Case
from conformance.contract.profile import Profile
from conformance.contract.world import View, World, changes

Findings = dict[str, str]
"""By aspect: empty where all is as the rule has it, else what is seen instead."""


class Unusable(Exception):
    """The plugin does not do right calls, which come before the one that is examined."""


def examine(case: Case, world: World) -> Findings:
    """Make the case's calls in a world that is as found; the world may be another one afterwards."""
    for verb in case.before:
        if speaks(case.version, verb):
            _right(world, verb, case.version)
    call = world.call(case.verb, case.version)
    before = world.view() if case.before else world.untouched
    case.spoil(call)
    reply = world.perform(call)
    allowed = reply.outcome in case.outcomes
    found = {"outcome": "" if allowed else reply.outcome}
    if reply.error:
        found["error"] = "; ".join(_faults_of_error(reply, call, world.profile))
        if case.names and allowed:
            found["names"] = _names(reply.error, case)
        found["left"] = changes(before, world.view())
    elif reply.outcome == SUCCESS and allowed:
        found["output"] = _fault_of_output(reply, case)
        if case.output != NOTHING and len(reply.documents) == 1:
            found["result"] = _result(reply.documents[0], case, call, world.profile)
        if case.leaves:
            found["left"] = _left(case.leaves, before, world)
    return found


def _right(world: World, verb: str, version: str) -> None:
    reply = world.perform(world.call(verb, version))
    if reply.outcome != SUCCESS:
        raise Unusable(f"{verb} that comes before, with nothing wrong: {reply.outcome}: {reply.stdout.decode()}")


def _fault_of_output(reply: Reply, case: Case) -> str:
    if reply.rubbish:
        return "stdout is no JSON"
    wanted = 0 if case.output == NOTHING else 1
    if len(reply.documents) != wanted:
        return f"{len(reply.documents)} JSON documents on stdout"
    return "" if all(isinstance(document, dict) for document in reply.documents) else "no JSON object on stdout"


def _faults_of_error(reply: Reply, call: Call, profile: Profile) -> Iterator[str]:
    if reply.rubbish:
        yield "stdout is no JSON"
    if len(reply.documents) != 1:
        yield f"{len(reply.documents)} JSON documents on stdout"
    error = reply.error
    if "cniVersion" not in error:
        yield "no cniVersion"
    elif error["cniVersion"] not in _versions_of_error(reply, call, profile):
        yield f"cniVersion {error['cniVersion']!r}"
    if not isinstance(error.get("msg"), str) or not error["msg"]:
        yield "no msg"
    if not isinstance(error.get("details", ""), str):
        yield "details are no text"
    if unknown := error.keys() - {"cniVersion", "code", "msg", "details"}:
        yield f"unknown keys {sorted(unknown)}"


def _versions_of_error(reply: Reply, call: Call, profile: Profile) -> tuple[str, ...]:
    """The configuration's version; any that the plugin speaks, where it may not have come to read that."""
    given = str(call.config.get("cniVersion"))
    unread = call.stdin is not None or reply.outcome == MISSING or given not in VERSIONS
    return profile.versions if unread else (given,)


def _names(error: dict[str, Any], case: Case) -> str:
    text = f"{error.get('msg')} {error.get('details')}"
    absent = [name for name in case.names if name not in text]
    return f"does not name {', '.join(absent)}" if absent else ""


def _result(printed: dict[str, Any], case: Case, call: Call, profile: Profile) -> str:
    if case.output == PREV_RESULT:
        wanted = {**call.config["prevResult"], "cniVersion": call.config.get("cniVersion", VERSIONS[0])}
        places = sorted(_differing("", wanted, printed))
        return f"differs at {', '.join(places)}" if places else ""
    assert case.output == SUPPORTED
    listed = printed.get("supportedVersions")
    if not isinstance(listed, list) or not set(profile.versions) <= set(listed):
        return f"supportedVersions {listed}"
    return "" if printed.get("cniVersion") in listed else f"cniVersion {printed.get('cniVersion')!r}"


def _differing(place: str, wanted: Any, printed: Any) -> Iterator[str]:
    """Where two JSON values differ, as paths."""
    if isinstance(wanted, dict) and isinstance(printed, dict):
        for key in wanted.keys() | printed.keys():
            yield from _differing(f"{place}.{key}".lstrip("."), wanted.get(key, ...), printed.get(key, ...))
    elif isinstance(wanted, list) and isinstance(printed, list) and len(wanted) == len(printed):
        for number, (one, other) in enumerate(zip(wanted, printed, strict=True)):
            yield from _differing(f"{place}[{number}]", one, other)
    elif wanted != printed or isinstance(wanted, bool) != isinstance(printed, bool):
        yield place


def _left(leaves: str, before: View, world: World) -> str:
    after = world.view()
    if leaves == FILES_AS_FOUND:
        return changes(_files(world.untouched), _files(after))
    return changes(world.untouched if leaves == AS_FOUND else before, after)


def _files(view: View) -> View:
    return frozenset(line for line in view if line.startswith("file "))
