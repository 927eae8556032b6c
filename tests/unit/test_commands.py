"""Programs that are run: their output, or an error in their own words."""

from __future__ import annotations

import pytest

from node_helper.kernel import commands
from node_helper.kernel.commands import CommandFailed, run


def test_the_output_of_a_program_that_is_given_text() -> None:
    assert run(["cat"], "some text\n") == "some text\n"


def test_a_failure_carries_the_programs_words() -> None:
    with pytest.raises(CommandFailed) as raised:
        run(["sh", "-c", "echo 'iptables-restore: line 3\n failed' >&2; exit 2"])
    assert str(raised.value).endswith("iptables-restore: line 3 failed")


def test_a_failure_without_words_carries_the_exit_status() -> None:
    with pytest.raises(CommandFailed, match="false: exit status 1"):
        run(["false"])


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandFailed, match=r"svctun-none is not installed on this node \(or not in PATH\)") as raised:
        run(["svctun-none", "-x"])
    assert raised.value.errno == 2


def test_a_program_that_does_not_end_is_ended_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_SECONDS", 0.1)
    with pytest.raises(CommandFailed, match="sleep 60 did not end within"):
        run(["sleep", "60"])
