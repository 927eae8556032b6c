"""Calls of the built plugin as a runtime makes them: variables and stdin go in, stdout and exit status come out.

The fixtures are those of every kernel test; conftest imports them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import attachment

VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
SINCE_0_4 = VERSIONS[VERSIONS.index("0.4.0") :]
VARIABLES = {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"}
ANY_VERB = ["ADD", "DEL", "CHECK", "GC", "STATUS"]

TIME_LIMIT = 20.0
"""Seconds after which a call of the plugin counts as hanging."""


@pytest.fixture(scope="session")
def binary() -> Path:
    named = os.environ.get("SERVICE_TUNNEL_BINARY")
    path = Path(named) if named else Path(__file__).parents[2] / "dist" / "service-tunnel" / "service-tunnel"
    assert path.is_file(), f"{path} is not there: run `make plugin`, or name the binary in SERVICE_TUNNEL_BINARY"
    return path


class Reply:
    """What the runtime sees of one call."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.status = done.returncode
        self.text = done.stdout
        assert not done.stderr, f"stderr is not for the runtime: {done.stderr!r}"

    @property
    def json(self) -> dict[str, Any]:
        parsed = json.loads(self.text)
        assert isinstance(parsed, dict)
        return parsed

    def succeeded(self) -> Reply:
        assert self.status == 0, self.text
        return self

    def failed(self, code: int) -> dict[str, Any]:
        """The error object, after what the specification demands of every one has been checked."""
        assert self.status != 0, self.text
        error = self.json
        assert error["code"] == code, error
        assert error["cniVersion"] in VERSIONS
        assert error["msg"]
        assert error.keys() <= {"cniVersion", "code", "msg", "details"}
        return error


class Pod:
    """One pod's place in the world, and the calls a runtime makes for it."""

    def __init__(self, binary: Path, folder: Path, netns: str) -> None:
        self.binary = binary
        self.folder = folder
        self.netns = netns
        self.socket = folder / "h.sock"
        (folder / "state").mkdir()

    def environ(self, command: str, changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
        whole: dict[str, str | None] = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "0123456789abcdef",
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.binary.parent),
            "CNI_ARGS": "K8S_POD_INFRA_CONTAINER_ID=0123;IgnoreUnknown=1;K8S_POD_UID=u-1;K8S_POD_NAME=web-1;"
            "K8S_POD_NAMESPACE=shop",
        }
        whole.update(changes or {})
        return {name: value for name, value in whole.items() if value is not None}

    def conf(self, version: str = "1.0.0", **changes: Any) -> dict[str, Any]:
        whole = {
            "cniVersion": version,
            "name": "pods",
            "type": "service-tunnel",
            "helperSocket": str(self.socket),
            "runDir": str(self.folder / "run"),
            "stateDir": str(self.folder / "state"),
            "helperWait": 0.2,
            "log": {"file": str(self.folder / "log"), "level": "debug"},
            "prevResult": result(version),
        } | changes
        return {key: value for key, value in whole.items() if value is not ...}

    def call(
        self,
        command: str,
        conf: Any = None,
        environ: Mapping[str, str | None] | None = None,
        stdin: bytes | None = None,
    ) -> Reply:
        """One call. `conf`: the whole configuration; `environ`: variables that differ; `stdin`: other bytes."""
        given = json.dumps(self.conf() if conf is None else conf).encode() if stdin is None else stdin
        done = subprocess.run(
            [self.binary], input=given, env=self.environ(command, environ), capture_output=True, timeout=TIME_LIMIT
        )
        return Reply(done)

    def records(self) -> list[attachment.Attachment]:
        found, troubles = attachment.read_all(str(self.folder / "run"))
        assert not troubles
        return found


def result(version: str) -> dict[str, Any]:
    """What the plugin before this one answered, in the form of that version, with things unknown to us."""
    if version in ("0.1.0", "0.2.0"):
        return {"cniVersion": version, "ip4": {"ip": "10.9.0.2/24", "gateway": "10.9.0.1"}, "dns": {}}
    address: dict[str, Any] = {"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 0}
    if not version.startswith("1."):
        address["version"] = "4"
    return {
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/pod", "mtu": 1450}],
        "ips": [address],
        "routes": [{"dst": "0.0.0.0/0", "priority": 18446744073709551616}],
        "dns": {"nameservers": ["10.9.0.1"]},
        "vendor.example/extension": {"ünicode": "✓ 🚀", "real": 1.5, "nothing": None, "deep": [[[{}]]]},
    }


@pytest.fixture
def netns() -> Iterator[str]:
    """A network namespace of its own, held by a process that does nothing; nothing of it stays behind."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()  # the namespace is there
        yield f"/proc/{holder.pid}/ns/net"
        holder.kill()


@pytest.fixture
def pod(binary: Path, tmp_path: Path, netns: str) -> Pod:
    return Pod(binary, tmp_path, netns)
