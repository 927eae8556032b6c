"""The built folder needs nothing of the system but the C library: Debian 11, 12 and 13, without Python."""

from __future__ import annotations

import json
from pathlib import Path

from tests.kernel.private_netns import run
from tests.portability.roots import RELEASES
from tests.portability.sandbox import PROGRAM, RESULT, VIPS, Case, Sandbox

NOBODY = Case(f"exec setpriv --reuid=65534 --regid=65534 --clear-groups {PROGRAM}")


def test_the_release_is_what_it_claims_to_be_and_has_no_python(release: str, root: Path, sandbox: Sandbox) -> None:
    assert sandbox.run(Case("getconf GNU_LIBC_VERSION")).stdout.decode().split() == ["glibc", RELEASES[release]]
    names = [path.name for path in (root / "usr").rglob("*") if path.is_file()]
    assert not [name for name in names if name.startswith(("libpython", "python2", "python3"))]


def test_anyone_may_ask_for_the_version(sandbox: Sandbox) -> None:
    done = sandbox.run(NOBODY, CNI_COMMAND="VERSION")
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["supportedVersions"][-1] == "1.1.0"
    assert not done.stderr


def test_it_explains_itself_where_no_variable_is_set(sandbox: Sandbox) -> None:
    done = sandbox.run(Case(f"exec env -i {PROGRAM}"))
    assert b"service-tunnel" in done.stdout + done.stderr
    assert b"1.1.0" in done.stdout + done.stderr


def test_a_pod_gets_its_tunnels_and_loses_them(pod: Sandbox) -> None:
    added = pod.call("ADD")
    assert added.returncode == 0, added
    assert json.loads(added.stdout) == RESULT
    assert not added.stderr
    assert "svctun-gpe" in addresses(pod)
    assert all(vip in addresses(pod) for vip in VIPS)
    assert pod.call("CHECK").returncode == 0
    assert pod.call("DEL").returncode == 0
    assert not [gone for gone in ("svctun-gpe", *VIPS) if gone in addresses(pod)]
    assert pod.call("DEL").returncode == 0


def addresses(pod: Sandbox) -> str:
    return run(pod.netns, "ip", "-brief", "address")
