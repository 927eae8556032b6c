"""What systemd hears of the helper (sd_notify): a datagram of `NAME=value` lines to the socket that it names.

Where no service manager asks for it nothing is sent. The protocol is ten lines, a library would be more.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

_PATIENCE = 1.0
"""Seconds that what must not be missed waits for room; the rest is told again anyway."""


class ServiceManager:
    """Tells the service manager that started this process; quiet where there is none."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """`environment`: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, as systemd.exec(5) and sd_notify(3) have it."""
        self._path = environment.get("NOTIFY_SOCKET", "")
        self._status = ""
        self.watchdog = self._watchdog(environment)
        """Seconds between two signs of life, half of what the service manager waits; None: it does not."""

    @staticmethod
    def _watchdog(environment: Mapping[str, str]) -> float | None:
        microseconds, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        if not microseconds.isdigit() or (process and process != str(os.getpid())):
            return None
        return int(microseconds) / 2_000_000 or None

    def ready(self) -> None:
        self._tell("READY=1", _PATIENCE)

    def stopping(self) -> None:
        self._tell("STOPPING=1\nSTATUS=stopping; traffic goes on", _PATIENCE)

    def alive(self) -> None:
        self._tell("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; told only when it is another one."""
        if text != self._status:
            self._status = text
            self._tell(f"STATUS={text}")

    def _tell(self, lines: str, patience: float = 0.0) -> None:
        if not self._path:
            return
        # A leading @ stands for the zero byte of an abstract socket's name.
        path = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notice:
            notice.settimeout(patience)
            try:
                notice.sendto(lines.encode(), path)
            except OSError:
                return  # A service manager that does not listen misses a line; the helper's work does not wait.
