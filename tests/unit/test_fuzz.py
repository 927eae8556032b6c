"""A short run of the fuzzer over each parser, and that it would find what it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from cni_plugin import jsontext, wire
from tests.fuzz import __main__ as command
from tests.fuzz import campaign
from tests.fuzz.campaign import from_grammar, run
from tests.fuzz.targets import TARGETS, Target

INPUTS = 2_000


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_a_parser_is_given_what_comes_out_is_what_was_promised(name: str) -> None:
    result = run(TARGETS[name], seed=20261123, count=INPUTS)
    assert not result.findings, "\n".join(found.what for found in result.findings.values())
    assert result.inputs == INPUTS
    assert result.taken > INPUTS / 200, "inputs that are all refused at once test nothing"


def test_the_same_seed_makes_the_same_inputs_and_another_others() -> None:
    assert from_grammar(TARGETS["json"].grammar, 1, 50) == from_grammar(TARGETS["json"].grammar, 1, 50)
    assert from_grammar(TARGETS["json"].grammar, 1, 50) != from_grammar(TARGETS["json"].grammar, 2, 50)
    assert run(TARGETS["message"], 1, 3000).taken == run(TARGETS["message"], 1, 3000).taken


@pytest.mark.parametrize(
    ("target", "place", "fault"),
    [
        ("json", "cni_plugin.jsontext.loads", lambda text: __import__("json").loads(text)),
        ("message", "cni_plugin.wire._CONSTANTS", {0xC0: None, 0xC2: 0, 0xC3: 1}),
        ("config", "cni_plugin.config._seconds", float),
        ("environment", "cni_plugin.environment.is_identifier", bool),
        ("question", "node_helper.questions._port", lambda asked, key: asked[key]),
        ("answer", "cni_plugin.tunnel._one_of", lambda choices, what, value: value),
        ("record", "cni_plugin.attachment._TEXTS", ()),
    ],
)
def test_a_parser_with_a_fault_is_found_out(
    monkeypatch: pytest.MonkeyPatch, target: str, place: str, fault: object
) -> None:
    monkeypatch.setattr(place, fault)
    assert run(TARGETS[target], seed=1, count=2 * INPUTS).findings


@pytest.mark.timeout(20)
def test_a_check_that_does_not_end_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "_PATIENCE", 0.2)

    def endless(_: bytes) -> bool:
        while True:
            pass

    result = run(Target("", st.binary(), endless), seed=1, count=1)
    assert [finding.what for finding in result.findings.values() if "no end after" in finding.what]


def test_findings_are_saved_and_can_be_had_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "FINDINGS", tmp_path)
    monkeypatch.setattr(wire, "_CONSTANTS", {0xC0: 0})
    assert command.main(["message", "json", "--count", "2000", "--seed", "7"]) == 1
    printed = capsys.readouterr().out
    assert "seed 7" in printed and "2,000" in printed
    file = next(tmp_path.iterdir())
    assert file.name.startswith("message-") and str(file) in printed
    with pytest.raises(AssertionError):
        command.main(["--replay", str(file)])
    monkeypatch.undo()
    assert command.main(["--replay", str(file)]) == 0


def test_without_findings_the_exit_status_is_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["json", "--count", "500"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("all")


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(SystemExit):
        command.main(["jason"])


def test_depth_is_limited_in_both_formats_and_never_by_a_crash() -> None:
    """At every depth a value is either read, and can be written again, or refused."""
    for depth in [*range(1, 120), 500, 900, 990, 1000, 1100, 5000, 100_000, 1_000_000]:
        for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
            try:
                value = jsontext.loads(text)
            except jsontext.JsonError:
                assert depth > 500
            else:
                assert jsontext.dumps(value) == text
        body = b"\x91" * depth + b"\xc0"
        if depth <= wire.DEPTH_LIMIT:
            assert wire.pack(wire.unpack(body)) == body
        else:
            with pytest.raises(wire.WireError):
                wire.unpack(body)
