"""One machine of the testbed: a network namespace and a mount namespace of its own.

The mount namespace is what lets several nodes live on one machine under the names that a real node has:
/run/netns/service-tunnel, /run/service-tunnel/helper.sock and /var/lib/cni are each node's own.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.testbed.namespaces import Place, TestbedError

_HOLDER = Path(__file__).with_name("holder.py")
_counter = itertools.count(1)


def new_prefix() -> str:
    """A prefix for names outside the testbed's own namespaces, one per testbed."""
    return f"st{os.getpid()}x{next(_counter)}-"


class Host(Place):
    """A machine; its start begins when constructed and is over after `wait_ready`, so several start at once.

    Ends with `close`, and with the process that made it, however that ends.
    """

    def __init__(
        self,
        name: str,
        *,
        sysctls: Mapping[str, str | int] | None = None,
        visible_as: str = "",
    ) -> None:
        """Start the machine `name`.

        `sysctls` are set before any device but lo exists, so that `all` and `default` reach every device.
        `visible_as`: a name under which `ip netns exec` finds the network namespace from outside, too.
        """
        self._visible_as = visible_as
        wanted = json.dumps({"sysctls": dict(sysctls or {}), "name": visible_as})
        self._holder = subprocess.Popen(
            # The bare interpreter: a virtual environment's start-up files would cost more than the work.
            [sys.executable, "-ISE", str(_HOLDER), wanted],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C is for the builder of the testbed, who still needs the hosts to clean up.
            start_new_session=True,
        )
        self.pid = self._holder.pid
        self._ready = False
        super().__init__(name, f"/proc/{self.pid}/ns/net", f"/proc/{self.pid}")

    def wait_ready(self) -> None:
        """Wait until the namespaces exist; raises TestbedError with the reason when they cannot."""
        if self._ready:
            return
        assert self._holder.stdout is not None and self._holder.stderr is not None
        if self._holder.stdout.readline().strip() != "ready":
            raise TestbedError(f"host {self.name} does not start: {self._holder.stderr.read().strip()}")
        self._ready = True
        if self._visible_as:
            subprocess.run(["ip", "netns", "attach", self._visible_as, str(self.pid)], check=True)

    def path(self, inside: str) -> Path:
        """Where the caller finds this host's absolute path `inside`."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def place(self, name: str, netns: str) -> Place:
        """A place with this host's mounts, in the network namespace that is at `netns` on this host."""
        return Place(name, str(self.path(netns)), self._process)

    def keep(self) -> None:
        """From now on outlive the process that made it; `kill PID` ends it then, with all that is in it."""
        assert self._holder.stdin is not None
        self._holder.stdin.write("keep\n")
        self._holder.stdin.flush()

    def close(self) -> None:
        """End everything that runs here and remove the namespaces; idempotent."""
        self.stop_processes()
        if self._holder.poll() is None:
            self._holder.send_signal(signal.SIGTERM)
        self._finish()

    def crash(self) -> None:
        """End everything at once, as when a machine loses its power."""
        self._holder.send_signal(signal.SIGTERM)  # its end is SIGKILL to all processes of the host
        self._finish()
        self.stop_processes()

    def _finish(self) -> None:
        self._holder.wait(30)
        for stream in (self._holder.stdin, self._holder.stdout, self._holder.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Host:
        self.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
