"""`python -m tests.vm -- COMMAND …`: run a command of this checkout on Debian's stock kernel.

The command runs as root in /project (this checkout) with the project's Python first on the PATH; its output appears
as it comes, its exit code is this command's. What it writes below build/ stays.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from install.debian import DebianError
from tests.vm.image import PROJECT, ImageError, ensure

DEFAULT_LIMIT = 1500.0  # seconds
LOGS_KEPT = 86400.0  # seconds
GRACE = 15.0  # seconds past the limit after which even the supervisor's own part is ended


def main() -> int:
    """Build the image where it is missing, then run the command under a supervisor that outlives nothing."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument(
        "--limit", type=float, default=DEFAULT_LIMIT, metavar="SECONDS", help="end it after (%(default)s)"
    )
    parser.add_argument("--label", default="run", help="logs go to build/vm/LABEL-<pid> (%(default)s)")
    parser.add_argument("--memory", default="4G")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--build-only", action="store_true", help="only see to it that the image is there")
    parser.add_argument("command", nargs="*", metavar="COMMAND")
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        print(
            "vm: needs root (debootstrap, chroot, mounts in a namespace of its own): run it with sudo", file=sys.stderr
        )
        return 1
    try:
        image = ensure(lambda line: print(f"vm: {line}", flush=True))
    except (ImageError, DebianError) as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1
    if chosen.build_only:
        return 0
    if not chosen.command:
        parser.error("which command? For example: python -m tests.vm -- uname -a")
    logs = PROJECT / "build" / "vm"
    for old in logs.glob("*-*/"):
        if time.time() - old.stat().st_mtime > LOGS_KEPT:
            shutil.rmtree(old)
    folder = logs / f"{chosen.label}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    return _supervise(image, folder, chosen)


def _supervise(image: Path, folder: Path, chosen: argparse.Namespace) -> int:
    """Start `machine` in namespaces of its own; they end with it, and it ends with this process."""
    isolated = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--propagation=private", "--pid", "--fork"]
    isolated += ["--kill-child=KILL", "--mount-proc"]
    settings = [image, folder, chosen.limit, chosen.memory, chosen.cpus]
    inner = subprocess.Popen(
        [*isolated, sys.executable, "-m", "tests.vm.machine", *map(str, settings), *chosen.command], cwd=PROJECT
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda signum, _frame: inner.kill())
    try:
        code = inner.wait(chosen.limit + GRACE)
    except subprocess.TimeoutExpired:
        inner.kill()
        code = inner.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    raise SystemExit(main())
