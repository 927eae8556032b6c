"""One machine of the cluster: namespaces of all kinds, cgroups and a file system of its own.

More than the testbed's `Host`, which is a network and a mount namespace: a kubelet and a container runtime need to be
alone in it, and to end with it, whatever they started.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from conformance.cluster import keeper
from tests.testbed.host import Host
from tests.testbed.namespaces import REPOSITORY, Place, TestbedError

_KUBELETS_WISHES = {
    "vm.overcommit_memory": 1,
    "vm.panic_on_oom": 0,
    "kernel.panic": 10,
    "kernel.panic_on_oops": 1,
    "kernel.keys.root_maxkeys": 1000000,
    "kernel.keys.root_maxbytes": 25000000,
}
"""Sysctls of the whole machine that a kubelet sets where they differ: it is shown that they do not."""
PROGRAM_PATH = "/opt/cluster/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Machine(Host):
    """A machine that runs when constructed. Ends with `close`, and with the process that made it, however that ends."""

    def __init__(self, name: str, sysctls: Mapping[str, str | int], files: Mapping[str, str]) -> None:
        """`files`: text by path, put there at each start."""
        self._cgroup = keeper.cgroup_of(name)
        wanted = {
            "name": name,
            "cgroup": self._cgroup,
            "sysctls": dict(sysctls),
            "shown": _KUBELETS_WISHES,
            "files": {
                "/etc/hostname": f"{name}\n",
                "/etc/hosts": f"127.0.0.1 localhost {name}\n::1 localhost\n",
                "/etc/resolv.conf": "",
                **files,
            },
        }
        self._holder = subprocess.Popen(
            [sys.executable, "-sSE", "-m", keeper.__name__, json.dumps(wanted)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._visible_as = ""
        self.name = name
        self._wait_for_start()

    def _wait_for_start(self) -> None:
        assert self._holder.stdout is not None and self._holder.stderr is not None
        words = self._holder.stdout.readline().split()
        if words[:1] != ["ready"]:
            raise TestbedError(f"machine {self.name} does not start: {self._holder.stderr.read().strip()}")
        self.pid = int(words[1])
        self._ready = True
        Place.__init__(self, self.name, f"/proc/{self.pid}/ns/net", f"/proc/{self.pid}")
        self.run("ip", "link", "set", "lo", "up")

    def command(self, *argv: str) -> tuple[str, ...]:
        """The command line that runs `argv` there, in all of the machine's namespaces and in its cgroups."""
        enter = shlex.join(str(file) for file in keeper.entrances(self._cgroup))
        script = f'for file in {enter}; do echo 0 >"$file" || exit 125; done; exec "$@"'
        spaces = ("-m", "-n", "-u", "-i", "-p", "-C", "--wd=/")
        return ("sh", "-c", script, "sh", "nsenter", "-t", str(self.pid), *spaces, "--", *argv)

    def start(self, log: Path, *argv: str, **variables: str) -> subprocess.Popen[str]:
        """A program of the machine's own, in the background, with an environment that nothing of ours is in."""
        environment = {"PATH": PROGRAM_PATH, "HOME": "/root", "TMPDIR": "/run/tmp", **variables}
        clean = ("env", "-i", *(f"{key}={value}" for key, value in environment.items()))
        with log.open("a") as stream:
            return self.popen(*clean, *argv, stdout=stream, stderr=subprocess.STDOUT)

    def reboot(self) -> None:
        """All processes end at once, links and /run are gone; it starts anew, with nothing running."""
        assert self._holder.stdin is not None
        self._holder.stdin.write("reboot\n")
        self._holder.stdin.flush()
        self.stop_processes()
        self._wait_for_start()
