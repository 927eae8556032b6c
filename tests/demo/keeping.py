"""The topology that `--keep` leaves: where it is, commands to explore it with, how to take it down.

Each host lives as long as its holder process, so what is recorded is the holders' process ids, with their
start times: a process id alone may be somebody else's by the time of `--down`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.demo.flows import PORT
from tests.testbed.cluster import CLIENT
from tests.testbed.host import Host
from tests.testbed.namespaces import REPOSITORY, Place
from tests.testbed.scene import VIPS, Scene

_BUILD = REPOSITORY / "build"
_PATIENCE = 30.0
DEFAULT_NAME = "demo"


class CannotKeep(Exception):
    """A demo of this name is kept already, or does not go away; the message says which, and the way out."""


class KeptDemo:
    """What is kept under a name: hosts, a file that records them, a folder of commands to reach them by."""

    def __init__(self, name: str = DEFAULT_NAME) -> None:
        self._name = name
        self._state = _BUILD / f"{name}.json"
        self.commands = _BUILD / name
        """Small programs, one for each host and pod: `build/demo/ingress1 COMMAND …` runs it there."""
        self.prefix = f"{name}-"
        """Of the namespaces' names for `ip netns exec`."""

    def refuse_a_second(self) -> None:
        """Raises CannotKeep when such a demo stands, or namespaces have the names of one."""
        if any(_is_ours(host) for host in self._recorded().get("hosts", ())):
            raise CannotKeep(f"a demo is kept already: explore that one, or take it down: {self.way_down()}")
        netns = Path("/run/netns")
        taken = sorted(path.name for path in netns.glob(f"{self.prefix}*")) if netns.exists() else []
        if taken:
            raise CannotKeep(
                f"there are namespaces {', '.join(taken)}, and {_shown(self._state)} does not know them: if another "
                "checkout keeps a demo, take it down there, or choose another --name"
            )

    def keep(self, scene: Scene) -> str:
        """Lets the hosts outlive this process; returns what there is to try."""
        cluster = scene.cluster
        hosts: dict[str, Host] = {"client": cluster.client, "router": cluster.router}
        hosts |= {name: node.host for name, node in cluster.nodes.items()}
        scratch = scene.manifests.folder.parent
        recorded = [{"name": name, "pid": host.pid, "started": _started(host.pid)} for name, host in hosts.items()]
        _BUILD.mkdir(exist_ok=True)
        self._state.write_text(json.dumps({"scratch": str(scratch), "hosts": recorded}, indent=2) + "\n")
        self._write_commands({**hosts, **{pod.name: pod.place for pod in cluster.pods}}, scratch)
        for host in hosts.values():
            host.keep()
        return self._things_to_try(cluster.pods[0].name)

    def _write_commands(self, places: dict[str, Place], scratch: Path) -> None:
        shutil.rmtree(self.commands, ignore_errors=True)
        self.commands.mkdir(parents=True)
        path = f"{Path(sys.executable).parent}:/usr/sbin:/sbin:$PATH"
        for name, place in places.items():
            enter = shlex.join(place.command())
            script = f'export PATH={path}\n[ $# -gt 0 ] || set -- env PS1="{name}# " bash --norc\nexec {enter} "$@"'
            _write_program(self.commands / name, script)
        ask = shlex.join(("env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", "tests.demo.ask"))
        _write_program(self.commands / "ask", f'exec "${{0%/*}}/client" {ask} "$@"')
        for name in ("manifests", "logs"):
            (self.commands / name).symlink_to(scratch / name)

    def _things_to_try(self, pod: str) -> str:
        here = _shown(self.commands)
        sections = {
            "what an ingress node serves, and where it sends a flow": [
                f"{here}/ingress1 service-tunnel-helper status",
                f"{here}/ingress1 service-tunnel-helper trace {CLIENT[4]} 40000 {VIPS[4]} {PORT}",
                f"{here}/ask {VIPS[4]} --source-port 40000",
            ],
            "more questions of the client": [
                f"{here}/ask {VIPS[6]} --udp",
                f"{here}/client ping -c 3 {VIPS[6]}",
            ],
            "in the namespaces of a pod, an ingress node, its router of VIPs, the data centre's router": [
                f"{here}/{pod} ip addr",
                f"{here}/ingress1 ip route show proto 116",
                f"{here}/ingress1 ip netns exec service-tunnel ip nexthop",
                f"ip netns exec {self.prefix}router ip route show {VIPS[4]}",
            ],
            "take the annotation away, or change what you like: the helpers follow the folder of YAML": [
                f"sed -i /cmd.nu.tunnel/d {here}/manifests/service-default-web.yaml",
                f"{here}/ingress1 service-tunnel-helper status",
                f"tail -n 3 {here}/logs/ingress1.log",
            ],
        }
        lines = ["The topology stays. Things to try:"]
        for purpose, commands in sections.items():
            lines += ["", f"  {purpose}", *(f"    {command}" for command in commands)]
        return "\n".join([*lines, "", "  when you are done", f"    {self.way_down()}"])

    def way_down(self) -> str:
        """The command that takes it down."""
        return "make demo ARGS=--down" if self._name == DEFAULT_NAME else f'make demo ARGS="--down --name {self._name}"'

    def down(self) -> str:
        """Ends what `keep` recorded, if it is still the same; returns what was done. Raises CannotKeep."""
        recorded = self._recorded()
        hosts = [host for host in recorded.get("hosts", ()) if _is_ours(host)]
        for host in hosts:
            os.kill(host["pid"], signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        while left := [host for host in hosts if _is_ours(host)]:
            if time.monotonic() > deadline:
                names = ", ".join(f"{host['name']} (process {host['pid']})" for host in left)
                raise CannotKeep(f"still there {_PATIENCE:.0f} s after SIGTERM: {names}")
            time.sleep(0.02)
        scratch = Path(recorded.get("scratch", "/nonexistent"))
        if scratch.name.startswith("svctun-scene-"):
            shutil.rmtree(scratch, ignore_errors=True)
        if recorded:
            shutil.rmtree(self.commands, ignore_errors=True)
        self._state.unlink(missing_ok=True)
        if not hosts:
            return "no demo is kept: nothing to take down"
        return f"taken down: {', '.join(host['name'] for host in hosts)}"

    def _recorded(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._state.read_text())
        except FileNotFoundError:
            return {}
        return found


def _write_program(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)


def _is_ours(host: dict[str, Any]) -> bool:
    started = _started(host["pid"])
    return started is not None and started == host["started"]


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's own terms; None when it has ended, reaped or not."""
    try:
        # After the name in parentheses, which may hold anything: state is field 3, start time field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else f"{_boot()} {fields[19]}"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _shown(path: Path) -> str:
    return os.path.relpath(path)
