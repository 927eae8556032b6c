"""The built plugin, killed at its system calls: what `test_plugin_killed` shows of the code holds for the binary.

Its system calls are seen, and met, by strace.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from cni_plugin.tunnel import VXLAN_GPE
from tests.kernel.interruption import NO_FAULT, Ended, Fault, Site, everywhere, sites
from tests.testbed.cni import plugin_binary

CHANGING = ("mkdir", "openat", "write", "rename", "connect", "sendto", "setns")
STRACE = ("strace", "-f", "-qq")


class BinarySite(Site):
    """A site of which the built binary takes care."""

    def run(self, verb: str, fault: Fault = NO_FAULT) -> Ended:
        assert fault == NO_FAULT
        done = self.call(verb)
        return Ended(done.returncode, done.stdout, ())

    def call(self, verb: str, *before: str) -> subprocess.CompletedProcess[bytes]:
        command = [*before, str(plugin_binary())]
        environ = {**self.environ, "CNI_COMMAND": verb}
        return subprocess.run(
            command, env=environ, input=json.dumps(self.conf).encode(), capture_output=True, timeout=60
        )

    def calls(self) -> list[tuple[str, int]]:
        """The changing system calls of an ADD from its first change on: name, and number among those of that name."""
        log = self.folder / "strace"
        done = self.call("ADD", *STRACE, f"--output={log}", f"--trace={','.join(CHANGING)}")
        assert done.returncode == 0, done.stderr
        found: list[tuple[str, int]] = []
        counts = dict.fromkeys(CHANGING, 0)
        for line in log.read_text().splitlines():
            name = re.sub(r"^(\d+ +)?(\w+)\(.*", r"\2", line)
            if name in counts and "resumed" not in line:
                counts[name] += 1
                changes = name != "openat" or "O_CREAT" in line
                if changes and (found or name == "mkdir"):
                    found.append((name, counts[name]))
        return found

    def kill(self, name: str, number: int) -> bool:
        """ADD, killed at this system call; whether it came to that."""
        done = self.call(
            "ADD", *STRACE, "--output=/dev/null", f"--trace={name}", f"--inject={name}:signal=9:when={number}"
        )
        return done.returncode != 0


@pytest.fixture(scope="module")
def several() -> Iterator[list[BinarySite]]:
    with sites(VXLAN_GPE, 3, BinarySite) as made:
        yield made


def test_whatever_a_killed_add_leaves_is_put_right(several: list[BinarySite]) -> None:
    calls = several[0].calls()
    several[0].succeed("DEL")
    assert {"mkdir", "openat", "write", "rename", "connect", "sendto", "setns"} == {name for name, _ in calls}
    killed = []

    def check(site: BinarySite, number: int) -> str:
        name, which = calls[number - 1]
        if site.kill(name, which):
            killed.append(number)
        verb = ("DEL", "GC", "ADD")[number % 3]
        site.succeed(verb)
        wrong = site.differs(site.full if verb == "ADD" else site.empty)
        site.succeed("DEL")
        return wrong and f"killed at {name} number {which}, then {verb}: {wrong}"

    everywhere(several, len(calls), check)
    assert len(killed) > 0.9 * len(calls), "the kernel's answers come in one piece or in two: numbers differ by some"
