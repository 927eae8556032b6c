"""The demo on a kernel that lacks what it needs: it says what, and shows the same in the virtual machine, all modes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.demo.__main__ import VM_LIMIT
from tests.vm.image import PROJECT, ensure

LACKING = (
    "import runpy\n"
    "from tests import kernel_features\n"
    "kernel_features.TRIALS['teleport'] = 'false'\n"
    "runpy.run_module('tests.demo', run_name='__main__', alter_sys=True)"
)
"""The demo on this machine, whose kernel is made to lack something."""


@pytest.mark.timeout(VM_LIMIT + 600)  # the image may have to be built
def test_what_this_kernel_lacks_is_shown_in_the_virtual_machine_with_every_mode() -> None:
    ensure()
    done = subprocess.run(
        [sys.executable, "-c", LACKING], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    first, second, *story = done.stdout.splitlines()
    assert re.fullmatch(r"kernel \S+ lacks teleport: the demo runs in a virtual machine instead", first)
    assert second.startswith("in the virtual machine, on Debian's stock kernel")
    # The table at the end: one line for each finding.
    findings = [line for line in story if re.search(r"  (ok|NOT)$", line)]
    for mode in ("gre", "mpls"):
        [shown] = [line for line in findings if line.startswith(f"  {mode}: TCP and UDP, IPv4 and IPv6 ")]
        assert re.search(r"  (\d+) of \1  +\1 of \1  +ok$", shown), shown
    assert re.fullmatch(rf"all {len(findings)} findings are as they should be; \d+ s", story[-1])
