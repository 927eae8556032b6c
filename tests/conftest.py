"""What all tests share: tunnel modes as a parameter, root for kernel tests, and no test that quietly did not run.

A test that takes `mode` runs once per tunnel mode. In tests/kernel the modes that this kernel lacks are deselected
and named in one line; they run in the virtual machine, whose kernel lacks none: there TEST_EVERY_MODE is set, and
nothing is deselected. A skip, on the other hand, fails the run unless its reason is listed in ALLOWED_SKIPS: a test
that must run and did not is a failure.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from cni_plugin.tunnel import MODES
from tests.kernel_features import lacking_modes

EVERY_MODE = "TEST_EVERY_MODE"
"""Variable that is set where no mode may be missing; the tests of one that is then fail."""
KERNEL_TESTS = Path(__file__).parent / "kernel"
ALLOWED_SKIPS: tuple[str, ...] = ()
"""Reasons, or beginnings of reasons, for which a test may be skipped."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RunWatch(config), "run-watch")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes `mode`, and does not say which, every tunnel mode."""
    named = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    chosen = {name.strip() for names in named for name in (names.split(",") if isinstance(names, str) else names)}
    if "mode" in metafunc.fixturenames and "mode" not in chosen:
        metafunc.parametrize("mode", MODES, scope="module")  # fixtures of a module may be built per mode


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if KERNEL_TESTS in item.path.parents and os.geteuid() != 0:
        pytest.fail("tests/kernel needs root: it makes network namespaces. Run it as root.", pytrace=False)


class ByScene(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types for it
    """Keeps the tests of one mode, or of one module without modes, on one worker: they share what is built for them."""

    def _split_scope(self, nodeid: str) -> str:
        path, _, parameters = nodeid.partition("[")
        mode = next((mode for mode in MODES if mode in parameters), "")
        return mode or path.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByScene | None:
    """What `--dist loadscope` means here; the unit tests are spread one by one."""
    return ByScene(config, log) if config.getoption("dist") == "loadscope" else None


def _mode_of(item: pytest.Item) -> str:
    """The tunnel mode that a test was given; empty for a test without."""
    callspec = getattr(item, "callspec", None)
    mode = callspec.params.get("mode") if callspec is not None else None
    return mode if mode in MODES else ""


class RunWatch:
    """Deselects modes that the kernel lacks, and turns skips that nobody allowed into a failed run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._deselected = 0
        self._skips: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        lacked = self._lacked_by(items)
        gone = [item for item in items if item in lacked]
        if gone:
            items[:] = [item for item in items if item not in lacked]
            self._deselected = len(gone)
            self._config.hook.pytest_deselected(items=gone)

    @staticmethod
    def _lacked_by(items: list[pytest.Item]) -> set[pytest.Item]:
        if os.environ.get(EVERY_MODE):
            return set()
        with_mode = [(item, mode) for item in items if KERNEL_TESTS in item.path.parents and (mode := _mode_of(item))]
        return {item for item, mode in with_mode if mode in lacking_modes()} if with_mode else set()

    def pytest_report_collectionfinish(self) -> list[str]:
        if not self._deselected:
            return []
        modes = ", ".join(lacking_modes())
        return [f"{modes}: not in this kernel ({platform.release()}); {self._deselected} tests run in the VM instead"]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report.nodeid, report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._note(report.nodeid, report.longrepr)

    def _note(self, nodeid: str, longrepr: object) -> None:
        reason = str(longrepr[2] if isinstance(longrepr, tuple) else longrepr).removeprefix("Skipped: ")
        if not reason.startswith(ALLOWED_SKIPS or ("\0",)):
            self._skips.append(f"{nodeid}: {reason}")

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        if self._skips and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return (yield)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._skips:
            terminalreporter.section("skipped, and nobody allowed it: the run has failed", red=True)
            for skip in self._skips:
                terminalreporter.line(skip)
