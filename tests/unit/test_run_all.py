"""What `make test` says of its parts: counts from reports, a table, and an exit status that hides nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import run_all
from tests.run_all import Outcome
from tests.vm.image import GUEST_PACKAGES, PROJECT

BLANK = Outcome("part", "here", remark="a remark")


def report(folder: Path, *suites: tuple[int, int, int, int]) -> Path:
    """A report as pytest writes it; each suite: tests, failures, errors, skipped."""
    lines = [
        f'<testsuite name="pytest" tests="{tests}" failures="{failures}" errors="{errors}" skipped="{skipped}"/>'
        for tests, failures, errors, skipped in suites
    ]
    file = folder / "report.xml"
    file.write_text(f'<?xml version="1.0"?><testsuites>{"".join(lines)}</testsuites>')
    return file


@pytest.mark.parametrize(
    ("suites", "code", "counts", "remark"),
    [
        ([(5, 0, 0, 0)], 0, (5, 0, 0), "a remark"),
        ([(5, 1, 2, 0)], 1, (2, 3, 0), "a remark"),
        ([(5, 0, 0, 0), (3, 1, 0, 0)], 1, (7, 1, 0), "a remark"),
        ([(5, 0, 0, 2)], 0, (3, 0, 2), "a remark"),
        ([(5, 0, 0, 2)], 1, (3, 1, 2), "skipped tests that must run (2)"),
        ([(5, 0, 0, 0)], 124, (5, 1, 0), "ended with exit code 124"),
        ([(2, 0, 0, 2)], 1, (0, 1, 2), "no test ran (exit code 1)"),
        ([(0, 0, 0, 0)], 5, (0, 1, 0), "no test ran (exit code 5)"),
        ([(0, 0, 0, 0)], 0, (0, 1, 0), "no test ran (exit code 0)"),
        ([], 0, (0, 1, 0), "no test ran (exit code 0)"),
    ],
    ids=[
        "all passed",
        "failures and errors",
        "several suites",
        "skips that are allowed",
        "skips that are not",
        "a limit that was reached after tests that passed",
        "skipped all",
        "deselected all",
        "collected nothing and called it a success",
        "a report without suites",
    ],
)
def test_a_part_s_counts_are_its_report_s_and_a_bad_end_counts(
    tmp_path: Path, suites: list[tuple[int, int, int, int]], code: int, counts: tuple[int, int, int], remark: str
) -> None:
    seen = run_all._counted(BLANK, report(tmp_path, *suites), code)
    assert (seen.passed, seen.failed, seen.skipped) == counts
    assert (seen.part, seen.where, seen.remark) == ("part", "here", remark)


def test_a_part_without_a_report_has_failed_whatever_it_said(tmp_path: Path) -> None:
    for code in (0, 125):
        seen = run_all._counted(BLANK, tmp_path / "none.xml", code)
        assert (seen.passed, seen.failed, seen.remark) == (0, 1, f"no test ran (exit code {code})")


def test_a_real_suite_is_counted_and_what_an_earlier_run_left_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_all, "RESULTS", tmp_path)
    suite = tmp_path / "test_suite.py"
    options = [str(suite), "-p", "no:cacheprovider", "-q", "--rootdir", str(tmp_path), "-c", "/dev/null"]
    suite.write_text("def test_one(): pass\ndef test_two(): assert False\n")
    seen = run_all._pytest("part", options)
    assert (seen.passed, seen.failed, seen.skipped, seen.remark) == (1, 1, 0, "")
    suite.unlink()
    seen = run_all._pytest("part", options)
    assert (seen.passed, seen.failed) == (0, 1)
    assert seen.remark.startswith("no test ran")


def steps(**outcomes: Outcome) -> dict[str, list[Callable[[], Outcome]]]:
    """Parts of one step each, which runs nothing."""

    def step(name: str, outcome: Outcome) -> Callable[[], Outcome]:
        def run() -> Outcome:
            return outcome

        run.__name__, run.__doc__ = name, f"The part {name}."
        return run

    return {name: [step(name, outcome)] for name, outcome in outcomes.items()}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_all, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("signal.signal", lambda *_: None)  # pytest keeps its own


@pytest.mark.usefixtures("results")
def test_the_table_says_what_ran_where_and_all_parts_run_although_one_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = steps(
        first=Outcome("first", "here", passed=3),
        second=Outcome("second", "VM, kernel 6", passed=20, failed=1, skipped=2, remark="without this"),
        third=Outcome("third", "here", passed=100),
    )
    monkeypatch.setattr(run_all, "PARTS", parts)
    assert run_all.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("=====")] == [f"===== {name}: The part {name}." for name in parts]
    heading = lines.index(next(line for line in lines if line.startswith("part ")))
    assert lines[heading].split() == ["part", "where", "passed", "failed", "skipped", "seconds"]
    assert lines[heading + 1].split() == ["first", "here", "3", "0", "0", "0"]
    assert lines[heading + 2].split() == ["second", "VM,", "kernel", "6", "20", "1", "2", "0", "without", "this"]
    assert lines[heading + 3].split() == ["third", "here", "100", "0", "0", "0"]
    assert [len(lines[heading + row]) for row in (0, 1, 3)] == [len(lines[heading])] * 3
    assert lines[-1] == "123 passed, 1 failed"


@pytest.mark.usefixtures("results")
def test_only_what_is_named_runs_and_0_means_that_all_of_it_passed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        run_all, "PARTS", steps(good=Outcome("good", "here", passed=1), bad=Outcome("bad", "here", failed=1))
    )
    assert run_all.main(["good"]) == 0
    assert "bad" not in capsys.readouterr().out
    assert run_all.main(["bad"]) == 1


def test_a_part_that_is_not_there_is_named_and_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_all.main(["lint", "everything"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("no such part: everything; there are lint, unit, kernel")


def test_what_a_check_of_lint_finds_counts_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_all, "run", lambda *command: 1 if command[-1] == "." and command[1] == "check" else 0)
    seen = run_all.lint()
    assert (seen.passed, seen.failed) == (3, 1)


def test_in_the_virtual_machine_every_mode_must_be_and_its_end_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[tuple[str, ...]] = []

    def run(*command: str) -> int:
        commands.append(command)
        return 125

    monkeypatch.setattr(run_all, "run", run)
    monkeypatch.setattr(run_all, "PROJECT", tmp_path)
    monkeypatch.setattr(run_all, "RESULTS", tmp_path)
    seen = run_all.kernel_in_vm()
    assert (seen.where, seen.failed, seen.remark) == ("VM, which did not start", 1, "no test ran (exit code 125)")
    [command] = commands
    assert " TEST_EVERY_MODE=1 python -m pytest tests/kernel/test_" in command[-1]


def test_what_runs_in_the_virtual_machine_exists() -> None:
    """A file that was renamed would run there unnoticed, and another be believed to."""
    assert [path for path in run_all.IN_VM if not (PROJECT / path).is_file()] == []


def test_what_runs_in_the_virtual_machine_needs_no_program_that_is_not_there() -> None:
    """Where strace is missing, a test that calls it fails on that kernel, whatever the plugin does."""
    tests = {str(path.relative_to(PROJECT)): path.read_text() for path in (PROJECT / "tests/kernel").glob("test_*.py")}
    users = {path for path, text in tests.items() if "strace" in text.lower()}
    assert users and "strace" not in GUEST_PACKAGES
    assert users & set(run_all.IN_VM) == set()
