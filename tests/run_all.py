"""Runs the parts of `make test` one after the other and says at the end what ran where.

`python -m tests.run_all [PART …]`: without a part, all of them. The run fails when anything in it fails, when a part
ran no test at all, when a test was skipped (tests/conftest.py sees to that), or when a part ended in a way that its
counts do not show. A part's failure does not stop the others.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from conformance.cluster.runtimes import crio_found
from tests.conftest import EVERY_MODE
from tests.kernel_features import lacking_modes
from tests.vm.image import PROJECT

RESULTS = PROJECT / "build" / "results"
HERE = f"here, kernel {platform.release()}"
VM_LIMIT = 2700.0  # seconds for the kernel tests in the virtual machine, whose processors are emulated
VM_TEST_LIMIT = 1200.0  # seconds for one test there
VM_PATIENCE = 400  # seconds until a condition counts as failed there
IN_VM = tuple(
    f"tests/kernel/test_{name}.py"
    for name in (
        "data_path moves hand_on coexistence restart_and_cleanup renewal_modes tunnel_mode pod_traffic pod_remaps "
        "pod_replies pod_netns label_filter tunnel_filter underlay tampering netlink nftables"
    ).split()
)
"""What says something about a mode or a kernel. All the rest of tests/kernel runs here only: emulated processors take
ten times as long, for every scene alone half a minute."""
CNI_CONTRACT = tuple(f"conformance/test_{name}.py" for name in ("contract", "chains", "peers"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one part did: where it ran, its counts, and a remark where the counts do not say everything."""

    part: str
    where: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    remark: str = ""


def run(*command: str, environment: dict[str, str] | None = None) -> int:
    """Run one command with its output here; its exit code."""
    print(f"$ {' '.join(command)}", flush=True)
    return subprocess.run(command, cwd=PROJECT, env={**os.environ, **(environment or {})}, check=False).returncode


def tool(name: str) -> str:
    """The path of one of the environment's programs."""
    return str(Path(sys.executable).parent / name)


def lint() -> Outcome:
    """Format, style, types, imports: each is one check."""
    checks = [
        [tool("ruff"), "format", "--check", "."],
        [tool("ruff"), "check", "."],
        [tool("mypy")],
        [tool("lint-imports"), "--no-logo"],
    ]
    failed = sum(run(*check) != 0 for check in checks)
    return Outcome("lint", HERE, passed=len(checks) - failed, failed=failed)


def unit() -> Outcome:
    """The pure tests, on all processors."""
    return _pytest("unit", ["tests/unit", "-n", str(os.cpu_count() or 1)])


def kernel() -> Outcome:
    """The namespace tests on this machine's kernel; modes that it lacks are left to the virtual machine."""
    modes = ", ".join(lacking_modes())
    return _pytest("kernel", ["tests/kernel"], remark=f"without {modes}: this kernel lacks them" if modes else "")


def conformance() -> Outcome:
    """The CNI contract, held against built plugins, and chains of reference plugins driven by libcni."""
    run(sys.executable, "-m", "conformance.peers", "cni")  # its progress is to be seen; where it fails, so do the tests
    return _pytest("conformance", [*CNI_CONTRACT, "-n", str(os.cpu_count() or 1)])


def api() -> Outcome:
    """The helper against a real API server, which is built before where it is missing."""
    run(sys.executable, "-m", "conformance.peers", "cni", "etcd", "flannel", "flanneld", "kubernetes")
    workers = ["-n", str(os.cpu_count() or 1), "--dist", "loadfile"]  # each has an API server of its own
    return _pytest("api", ["conformance/api", *workers])


def cluster() -> Outcome:
    """The project in a Kubernetes cluster of real programs, installed by its manifests."""
    run(sys.executable, "-m", "conformance.peers")
    remark = "" if crio_found() else "CRI-O: not run, no crio here"
    return _pytest("cluster", ["conformance/cluster"], remark=remark)


def portability() -> Outcome:
    """The built plugin on other releases and in odd surroundings; two builds compared; a fresh machine."""
    return _pytest("portability", ["tests/portability"])


def vm() -> Outcome:
    """The virtual machine's own tests, and the demo in it."""
    run(sys.executable, "-m", "tests.vm", "--build-only")  # its progress is to be seen; where it fails, so do the tests
    return _pytest("vm", ["tests/vm"])


def kernel_in_vm() -> Outcome:
    """The namespace tests, all modes, on Debian's stock kernel."""
    report = RESULTS / "kernel-in-vm.xml"
    release = RESULTS / "kernel-in-vm.release"
    for stale in (report, release):
        stale.unlink(missing_ok=True)
    relative = report.relative_to(PROJECT)
    cpus = max(2, min(8, os.cpu_count() or 2))
    options = f"-v -n {cpus} --dist loadscope -p no:cacheprovider --timeout={VM_TEST_LIMIT:.0f} --junitxml={relative}"
    pytest = f"python -m pytest {' '.join(IN_VM)} {options}"
    script = f"uname -r >{release.relative_to(PROJECT)}; TEST_PATIENCE={VM_PATIENCE} {EVERY_MODE}=1 {pytest}"
    harness = [sys.executable, "-m", "tests.vm", "--label=kernel-tests", f"--limit={VM_LIMIT:.0f}", f"--cpus={cpus}"]
    code = run(*harness, "--", "bash", "-c", script)
    where = f"VM, kernel {release.read_text().strip()}" if release.exists() else "VM, which did not start"
    return _counted(
        Outcome("kernel", where, remark=f"{len(IN_VM)} files that say something about modes or the kernel"),
        report,
        code,
    )


PARTS: dict[str, list[Callable[[], Outcome]]] = {
    "lint": [lint],
    "unit": [unit],
    "kernel": [kernel],
    "portability": [portability],
    "conformance": [conformance, api, cluster],
    "vm": [vm, kernel_in_vm],
}


def _pytest(part: str, arguments: list[str], remark: str = "") -> Outcome:
    report = RESULTS / f"{part}.xml"
    report.unlink(missing_ok=True)
    code = run(sys.executable, "-m", "pytest", *arguments, f"--junitxml={report}")
    return _counted(Outcome(part, HERE, remark=remark), report, code)


def _counted(outcome: Outcome, report: Path, code: int) -> Outcome:
    """`outcome` with the report's counts; a bad end that they do not show counts as one failure and is named."""
    passed = failed = skipped = 0
    if report.exists():
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            tests, failures, errors, skips = (int(suite.get(n, 0)) for n in ("tests", "failures", "errors", "skipped"))
            failed += failures + errors
            skipped += skips
            passed += max(tests - failures - errors - skips, 0)
    remark = outcome.remark
    if passed + failed == 0:
        failed, remark = 1, f"no test ran (exit code {code})"
    elif code != 0 and failed == 0:
        failed, remark = 1, f"skipped tests that must run ({skipped})" if skipped else f"ended with exit code {code}"
    return replace(outcome, passed=passed, failed=failed, skipped=skipped, remark=remark)


def main(names: list[str]) -> int:
    """Run the parts named, or all; print the table; 0 only when everything that must run ran and passed."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    RESULTS.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for step in [step for name in names or PARTS for step in PARTS[name]]:
        print(f"\n===== {step.__name__.replace('_', ' ')}: {step.__doc__}", flush=True)
        began = time.monotonic()
        outcome = step()
        outcomes.append(replace(outcome, seconds=time.monotonic() - began))
    _print_table(outcomes)
    failed = sum(outcome.failed for outcome in outcomes)
    print(f"{sum(outcome.passed for outcome in outcomes)} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def _print_table(outcomes: list[Outcome]) -> None:
    width = max(len(outcome.where) for outcome in outcomes)
    print(f"\n{'part':12}{'where':{width}}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for outcome in outcomes:
        counts = f"{outcome.passed:>8}{outcome.failed:>8}{outcome.skipped:>9}{outcome.seconds:>9.0f}"
        print(f"{outcome.part:12}{outcome.where:{width}}{counts}  {outcome.remark}".rstrip())
    print()


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted")
        raise SystemExit(130) from None
