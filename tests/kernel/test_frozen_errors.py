"""The built plugin on its rare paths: whatever the system refuses, the trimmed bundle has what the error needs.

strace refuses system calls of the binary, one in each run, from the moment at which it reads its configuration. What
comes out is the result, or an error of the form and with a code that fits, never a module that is missing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cni_plugin import errors
from cni_plugin.tunnel import VXLAN_GPE
from tests.kernel.interruption import everywhere, sites
from tests.kernel.test_plugin_killed_binary import STRACE, BinarySite
from tests.testbed.cni import plugin_binary
from tests.testbed.scene import PATIENCE

REFUSED = (
    *("openat", "read", "write", "rename", "unlink", "mkdir", "stat,newfstatat", "lstat", "fstat", "getdents64"),
    *("socket", "bind", "connect", "sendto", "recvfrom", "setsockopt", "getsockopt", "setns", "ioctl", "getrandom"),
)
"""A C library may make a newer call for the older one."""
CODES: dict[str, set[type[errors.CniError]]] = {
    "ADD": {errors.EnvironmentInvalid, errors.IoFailure, errors.PodSideFailed, errors.TryLater},
    "CHECK": {errors.EnvironmentInvalid, errors.IoFailure, errors.PodSideFailed, errors.Missing},
    "DEL": {errors.IoFailure},
    "GC": {errors.IoFailure},
    "STATUS": {errors.IoFailure, errors.Unavailable},
}
"""What a refused call may lead to."""


class Refusal:
    """A system call that is refused: its name, and its number among those of the name, by which strace counts."""

    def __init__(self, name: str, number: int, line: str) -> None:
        self.name, self.number, self.line = name, number, line


def seen(site: BinarySite, verb: str) -> list[Refusal]:
    """The calls of a verb once it reads its configuration, but not those by which modules are loaded."""
    log = site.folder / "strace"
    done = site.call(verb, *STRACE, "-y", f"--output={log}", f"--trace={','.join(REFUSED)}")
    assert done.returncode == 0, done.stdout
    bundle = str(plugin_binary().resolve().parent)
    counts: Counter[str] = Counter()
    found: list[Refusal] = []
    begun = False
    for line in log.read_text().splitlines():
        match = re.match(r"(?:\d+ +)?(\w+)\(", line)
        if match is None:
            continue
        name = match[1]
        counts[name] += 1
        begun = begun or (match[0].endswith("read(") and "read(0" in line)
        if begun and bundle not in line and not re.search(r'"/(usr|lib|etc)/|<anon_inode', line):
            found.append(Refusal(name, counts[name], line))
    return found


def refused(site: BinarySite, verb: str, refusal: Refusal) -> tuple[int, bytes]:
    inject = f"--inject={refusal.name}:error=EIO:when={refusal.number}"
    done = site.call(verb, *STRACE, "--output=/dev/null", f"--trace={refusal.name}", inject)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def several() -> Iterator[list[BinarySite]]:
    with sites(VXLAN_GPE, 3, BinarySite) as made:
        for site in made:
            site.conf["log"] = {"file": str(site.folder / "log"), "level": "debug"}
        yield made


def wrong_with(verb: str, status: int, output: bytes) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if b"No module named" in output or b"ImportError" in output:
        return f"something is missing in the bundle: {output!r}"
    if status == 0 or not output:  # nobody takes the answer: the refused call was the one that writes it
        return ""
    try:
        error: dict[str, Any] = json.loads(output)
    except ValueError:
        return f"no JSON: {output!r}"
    if error.get("code") not in {known.code for known in CODES[verb]} or not error.get("msg"):
        return f"unexpected: {error}"
    return ""


@pytest.mark.timeout(6 * PATIENCE)
@pytest.mark.parametrize("verb", CODES)
def test_a_refused_system_call_leads_to_an_error_that_fits(several: list[BinarySite], verb: str) -> None:
    present = verb not in ("ADD", "STATUS")
    if present:
        several[0].succeed("ADD")
    calls = seen(several[0], verb)
    several[0].succeed("DEL")
    assert len({refusal.name for refusal in calls}) >= 5, [refusal.line for refusal in calls]
    codes: set[int] = set()

    def check(site: BinarySite, number: int) -> str:
        refusal = calls[number - 1]
        if present:
            site.succeed("ADD")
        status, output = refused(site, verb, refusal)
        site.succeed("DEL")
        wrong = wrong_with(verb, status, output)
        if not wrong and output and status:
            codes.add(json.loads(output)["code"])
        return wrong and f"{verb}, {refusal.line}: {wrong}"

    everywhere(several, len(calls), check)
    assert codes, "not one of the refusals was told"
    log = "".join((site.folder / "log").read_text() for site in several)
    assert "No module named" not in log and "ImportError" not in log


def test_a_fault_of_the_plugin_itself_is_told_by_the_built_one_too(several: list[BinarySite]) -> None:
    """A library of the bundle that cannot be read stands for whatever nobody thought of."""
    site = several[0]
    log = site.folder / "strace"
    done = site.call("ADD", *STRACE, f"--output={log}", "--trace=openat")
    assert done.returncode == 0
    site.succeed("DEL")
    opened = [line for line in log.read_text().splitlines() if "openat(" in line]
    number = next(number for number, line in enumerate(opened, 1) if "_ctypes" in line)
    inject = f"--inject=openat:error=EIO:when={number}"
    done = site.call("ADD", *STRACE, "--output=/dev/null", "--trace=openat", inject)
    error = json.loads(done.stdout)
    assert (done.returncode, error["code"]) == (1, errors.Unexpected.code)
    assert "_ctypes" in error["msg"] + error["details"]
    assert "cni_plugin/" in error["details"], "where it went wrong"
    assert site.differs(site.empty) == "", "and what was done is undone"
