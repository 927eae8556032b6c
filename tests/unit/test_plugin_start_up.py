"""What the plugin imports on its hot path: modules that cost more than its work must not come back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Each of these costs a tenth of a millisecond to ten, at every pod's start.
TOO_EXPENSIVE = {
    "argparse", "collections", "contextlib", "ctypes", "dataclasses", "enum", "functools", "inspect", "ipaddress",
    "json", "logging", "pathlib", "re", "socket", "struct", "subprocess", "tempfile", "traceback", "typing",
    "msgpack",
}  # fmt: skip

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from cni_plugin import __main__ as plugin
from cni_plugin import netns
netns.OWN = "/proc/self/ns/uts"  # so that our own network namespace can stand in for a pod's, which only root makes
status = plugin.main()
sys.stderr.write(" ".join(sorted(sys.modules)))
sys.exit(status)
"""


def modules_after(environ: dict[str, str], stdin: str) -> set[str]:
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(Path(__file__).parents[2])]
    done = subprocess.run(command, env=environ, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("command", ["VERSION", "ADD", "DEL", "STATUS"])
def test_a_pod_without_tunnels_loads_no_expensive_module(tmp_path: Path, command: str) -> None:
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/proc/self/ns/net",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1",
    }
    conf = {
        "cniVersion": "1.1.0",
        "name": "pods",
        "type": "service-tunnel",
        "runDir": str(tmp_path),
        "helperSocket": str(tmp_path / "h"),
        "helperWait": 0,
        "log": {"file": str(tmp_path / "log")},
        "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]},
    }
    if command == "DEL":
        environ["CNI_NETNS"] = ""
    loaded = modules_after(environ, json.dumps(conf))
    assert not loaded & TOO_EXPENSIVE
    assert "cni_plugin.pod" not in loaded


def test_version_loads_nothing_that_only_other_verbs_need() -> None:
    loaded = modules_after({"CNI_COMMAND": "VERSION"}, "")
    assert not loaded & {"cni_plugin.verbs", "cni_plugin.config", "cni_plugin.jsontext", "_json"}
