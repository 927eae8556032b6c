"""One call of a plugin: the variables and the configuration that libcni would give it, and what comes back.

A case takes a right call and spoils it. What comes back is judged by one word, the outcome: `success`, `code 7` for an
error object, or what else happened (`signal 11`, `hangs`, `exit status 1 without an error object`).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Of the CNI specification, oldest first."""
UNKNOWN_VERSION = "9.9.9"
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""The version that brought a verb, where it was not the first."""

CONTAINER = "c0ffee00c0ffee00"
INTERFACE = "eth0"
NETWORK = "conformance"
TIME_LIMIT = 10.0
"""Seconds after which a call counts as hanging."""

SUCCESS = "success"


def speaks(version: str, verb: str) -> bool:
    """Whether that version of the specification has the verb."""
    return VERSIONS.index(version) >= VERSIONS.index(SINCE.get(verb, VERSIONS[0]))


def result(version: str, netns: str) -> dict[str, Any]:
    """What the plugin before this one could have answered: every key of the result types, and no other."""
    if version in ("0.1.0", "0.2.0"):
        return {
            "cniVersion": version,
            "ip4": {"ip": "10.9.0.2/24", "gateway": "10.9.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd09::2/64", "gateway": "fd09::1", "routes": [{"dst": "::/0"}]},
            "dns": {"nameservers": ["10.9.0.1"], "domain": "pod.example"},
        }
    addresses: list[dict[str, Any]] = [
        {"interface": 1, "address": "10.9.0.2/24", "gateway": "10.9.0.1"},
        {"interface": 1, "address": "fd09::2/64", "gateway": "fd09::1"},
    ]
    if not version.startswith("1."):
        addresses = [{"version": number, **address} for number, address in zip("46", addresses, strict=True)]
    return {
        "cniVersion": version,
        "interfaces": [
            {"name": "veth1234", "mac": "02:00:00:00:00:01"},
            {"name": INTERFACE, "mac": "02:00:00:00:00:02", "sandbox": netns},
        ],
        "ips": addresses,
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}, {"dst": "::/0", "gw": "fd09::1"}],
        "dns": {"nameservers": ["10.9.0.1"], "search": ["svc.example"], "options": ["ndots:5"]},
    }


@dataclass
class Call:
    """What a runtime gives to a plugin; cases change it."""

    environ: dict[str, str]
    config: dict[str, Any]
    stdin: bytes | str | None = None
    """Bytes instead of the configuration, or `closed`, `unreadable`, `silent` (stays open)."""
    folder: Path = Path("/nonexistent")
    """A folder in which a case may make files, outside of those that are looked at."""

    def body(self) -> bytes:
        """What is written to stdin."""
        return self.stdin if isinstance(self.stdin, bytes) else json.dumps(self.config).encode()


def right_call(
    verb: str, version: str, kind: str, netns: str, binary: Path, own: Mapping[str, Any], folder: Path
) -> Call:
    """A call with nothing wrong in it, as libcni would make it; `own` are the plugin's own keys."""
    environ = {"CNI_COMMAND": verb, "CNI_PATH": str(binary.parent)}
    config: dict[str, Any] = {"cniVersion": version, "name": NETWORK, "type": kind, **own}
    if verb in ("ADD", "DEL", "CHECK"):
        arguments = {"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web-1"}
        environ |= {
            "CNI_CONTAINERID": CONTAINER,
            "CNI_NETNS": netns,
            "CNI_IFNAME": INTERFACE,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in arguments.items()),
        }
        config["prevResult"] = result(version if version in VERSIONS else VERSIONS[-1], netns)
    if verb == "GC":
        config["cni.dev/valid-attachments"] = [{"containerID": CONTAINER, "ifname": INTERFACE}]
    if verb == "VERSION":
        config = {"cniVersion": version}
    return Call(environ, config, folder=folder)


@dataclass(frozen=True)
class Reply:
    """What the runtime sees of a call."""

    status: int
    """Exit status; negative for a signal."""
    stdout: bytes
    documents: tuple[Any, ...] = field(default=())
    """The JSON values on stdout, one after the other."""
    rubbish: str = ""
    """What on stdout is no JSON."""
    hung: bool = False

    @property
    def outcome(self) -> str:
        if self.hung:
            return "hangs"
        if self.status < 0:
            return f"signal {-self.status}"
        if self.status == 0:
            return SUCCESS
        code = self.error.get("code")
        return f"code {code}" if isinstance(code, int) else f"exit status {self.status} without an error object"

    @property
    def error(self) -> dict[str, Any]:
        """The error object: the last of what was printed, empty where there is none."""
        last = self.documents[-1] if self.documents else None
        return last if isinstance(last, dict) and self.status != 0 else {}


def perform(binary: Path, call: Call) -> Reply:
    """Run the plugin once, with the environment of the call and nothing else."""
    command, options = [str(binary)], {}
    if call.stdin == "closed":
        command = ["sh", "-c", 'exec "$0" <&-', str(binary)]
    if call.stdin == "unreadable":
        options["stdin"] = os.open("/dev/null", os.O_WRONLY)
    elif call.stdin == "silent":
        reading, writing = os.pipe()
        options["stdin"] = reading
    try:
        return _run(command, call, options)
    finally:
        for descriptor in options.values():
            os.close(descriptor)
        if call.stdin == "silent":
            os.close(writing)


def perform_at_once(binary: Path, calls: list[Call]) -> list[Reply]:
    """All calls at the same time; each has a configuration that fits into a pipe."""
    pipe = subprocess.PIPE
    running = [subprocess.Popen([binary], env=call.environ, stdin=pipe, stdout=pipe, stderr=pipe) for call in calls]
    for process, call in zip(running, calls, strict=True):
        assert process.stdin
        process.stdin.write(call.body())
        process.stdin.close()
        process.stdin = None
    replies = []
    for process in running:
        stdout, _ = process.communicate(timeout=TIME_LIMIT)
        replies.append(Reply(process.returncode, stdout, *_documents(stdout)))
    return replies


def _run(command: list[str], call: Call, options: dict[str, int]) -> Reply:
    given: dict[str, Any] = options or {"input": call.body()}
    try:
        done = subprocess.run(command, env=call.environ, capture_output=True, timeout=TIME_LIMIT, **given)
    except subprocess.TimeoutExpired:
        return Reply(0, b"", hung=True)
    documents, rubbish = _documents(done.stdout)
    return Reply(done.returncode, done.stdout, documents, rubbish)


def _documents(stdout: bytes) -> tuple[tuple[Any, ...], str]:
    """The JSON values one after the other, and what comes after them and is none."""
    text = stdout.decode("utf-8", "replace").strip()
    decoder = json.JSONDecoder()
    found: list[Any] = []
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except ValueError:
            return tuple(found), text
        found.append(value)
        text = text[end:].lstrip()
    return tuple(found), ""
