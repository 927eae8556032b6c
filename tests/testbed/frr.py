"""FRR, the other routing daemon, on the testbed's ingress nodes.

Debian's programs are unpacked into the cache, not installed, as BIRD is. Nodes run the project's own example,
`install/frr/frr.conf`, with their addresses in the place of the example's.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import time
from pathlib import Path

from install import debian
from install.cache import made_once
from tests.testbed.cluster import Node
from tests.testbed.namespaces import CommandFailed, TestbedError

EXAMPLE = Path(__file__).parents[2] / "install" / "frr" / "frr.conf"
_RELEASE = "bookworm"
_PACKAGES = (
    "frr=8.4.4-1.1~deb12u2",
    "libyang2=2.1.30-2",
    "libc-ares2=1.18.1-3",
    "libjson-c5=0.16-2",
    "libreadline8=8.2-1.3",
)
_DAEMONS = ("zebra", "bfdd", "bgpd")
_GROUP = "frrvty:x:65533:root\n"
"""The daemons do not start unless they find that their user is a member of this group."""
_PAM = "auth sufficient pam_permit.so\naccount sufficient pam_permit.so\n"
_START = 20.0


def program() -> Path:
    """The folder of the unpacked packages, with what installing them would change in /etc. Raises DebianError."""

    def unpack(folder: Path) -> Path:
        root = folder / "root"
        root.mkdir()
        debian.unpack_packages(_RELEASE, _PACKAGES, root)
        (root / "etc/group").write_text(Path("/etc/group").read_text() + _GROUP)
        (root / "etc/pam.d/frr").write_text(_PAM)
        return root

    pins = [debian.architecture(), _RELEASE, *_PACKAGES, _GROUP, _PAM]
    return made_once("frr", pins, unpack, "unpacking FRR")


class Frr:
    """zebra, bfdd and bgpd of one node, configured by vtysh, as Debian's start script does."""

    def __init__(self, node: Node) -> None:
        self._host = node.host
        self._root = program()
        self._folder = tempfile.TemporaryDirectory(prefix="svctun-frr-")
        Path(self._folder.name, "frr.conf").write_text(configuration(node))
        Path(self._folder.name, "vtysh.conf").touch()
        Path(self._folder.name, "none.conf").touch()
        self._run = self._host.path("/run/frr")
        self._run.mkdir(exist_ok=True)
        self._log = open(Path(self._folder.name, "log"), "a")  # noqa: SIM115 - as long as the processes
        self._processes: list[subprocess.Popen[str]] = []
        try:
            for daemon in _DAEMONS:  # the others are zebra's clients
                self._start(daemon)
            self._vtysh("-b")
        except BaseException as error:
            error.add_note(self.log())
            self.close()
            raise

    def log(self) -> str:
        return Path(self._folder.name, "log").read_text()

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait(10)
        self._log.close()
        self._folder.cleanup()

    def _start(self, daemon: str) -> None:
        command = (str(self._root / "usr/lib/frr" / daemon), "-f", f"{self._folder.name}/none.conf")
        process = self._host.popen(
            *self._as_installed(*command, "-u", "root", "-g", "root", "--log", "stdout"),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._processes.append(process)
        deadline = time.monotonic() + _START
        while not (self._run / f"{daemon}.vty").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise TestbedError(f"{daemon} on {self._host.name} does not start")
            time.sleep(0.02)

    def _vtysh(self, *arguments: str) -> None:
        done = self._host.run(
            *self._as_installed(str(self._root / "usr/bin/vtysh"), "--config_dir", self._folder.name, *arguments)
        )
        if "%" in done.stdout:  # it ends with 0 although it says that it knows no such command
            raise CommandFailed(arguments, 0, done.stdout, done.stderr)

    def _as_installed(self, *command: str) -> tuple[str, ...]:
        """Runs a command where it finds its libraries, group and PAM's permission; nobody else sees them."""
        libraries = [*self._root.glob("usr/lib/*-linux-gnu"), *self._root.glob("usr/lib/*-linux-gnu/frr")]
        libraries += self._root.glob("lib/*-linux-gnu")
        lines = [f"mount --bind {self._root}/etc/{name} /etc/{name}" for name in ("group", "pam.d")]
        lines.append(f"LD_LIBRARY_PATH={':'.join(map(str, libraries))} exec {shlex.join(command)}")
        return ("unshare", "--mount", "sh", "-ec", "\n".join(lines))


def configuration(node: Node) -> str:
    """The example for a node of the testbed."""
    values = {
        "10.1.1.2": node.addresses[4],
        "10.1.1.1": node.gateways[4],
        "fd01:0:0:1::1": node.gateways[6],
    }
    lines = []
    for line in EXAMPLE.read_text().splitlines():
        words = line.split(" ")
        lines.append(" ".join(values.get(word, word) for word in words))
    return "\n".join(lines) + "\n"
