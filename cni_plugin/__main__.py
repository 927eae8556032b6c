"""The chained CNI plugin `service-tunnel`: puts Services' VIPs and their decapsulation into new pods.

The runtime calls it with `CNI_…` variables and the chain entry on stdin, and reads one JSON object from
stdout: a result, or an error with exit status 1. Nothing else is ever written there, whatever happens.
Run by hand, without any of that, it says what it is.
"""

from __future__ import annotations

import posix
import sys

from cni_plugin import environment, versions
from cni_plugin.errors import CniError, IoFailure, Undecodable, Unexpected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cni_plugin.config import NetConf
    from cni_plugin.environment import Invocation

STDIN_LIMIT = 16 << 20
"""Bytes of a configuration; that of a pod with a thousand addresses and routes needs a hundredth."""

AT_HAND = 0.1
"""Seconds in which a configuration must be there that only the log of an error would need."""
_FIONREAD = 0x541B


def main() -> int:
    """One call of the plugin; returns its exit status."""
    environ = _environ()
    if not environ.get("CNI_COMMAND") and _explain(sys.argv, alone=not any(environ.values())):
        return 0
    call = Call()
    try:
        try:
            output = call.perform(environ)
        except CniError:
            raise
        except Exception as error:
            raise Unexpected(f"service-tunnel failed: {type(error).__name__}", _origin(error)) from error
    except CniError as error:
        _write(1, error.to_json(call.version))
        call.log(error, environ)
        return 1
    return 0 if _write(1, output) else 1


class Call:
    """What is known of a call, as far as it came: an error speaks the configuration's version and is logged there."""

    version = versions.LATEST
    invocation: Invocation | None = None
    plain: dict[str, Any] | None = None
    conf: NetConf | None = None

    def perform(self, environ: dict[str, str]) -> str:
        """The text for stdout; VERSION shall not wait for what the other verbs import."""
        self.invocation = environment.read(environ)
        if self.invocation.command == "VERSION":
            return versions.answer()
        from cni_plugin import config, verbs

        table = {
            "ADD": verbs.add,
            "DEL": verbs.delete,
            "CHECK": verbs.check,
            "GC": verbs.collect_garbage,
            "STATUS": verbs.status,
        }
        self.plain = config.decode(_stdin())
        self.version = config.version_of(self.plain)
        self.conf = config.read(self.plain, self.version, self.invocation.command)
        return table[self.invocation.command](self.invocation, self.conf)

    def log(self, error: CniError, environ: dict[str, str]) -> None:
        """The line for this error, where a configuration says into which file; without one there is none to say."""
        if self.invocation is None:
            self.plain = _configuration_at_hand()
        if self.plain is not None:
            from cni_plugin import config, verbs

            invocation = self.invocation or environment.as_given(environ)
            verbs.log_error(invocation, self.conf or config.of_the_log(self.plain), error)


def _environ() -> dict[str, str]:
    """The variables of CNI as text; `os.environ` would decode them all."""
    return {
        name.decode(): value.decode("utf-8", "surrogateescape")
        for name, value in posix.environ.items()
        if name.startswith(b"CNI_") and name.isascii()
    }


def _explain(arguments: list[str], alone: bool) -> bool:
    """Says on stderr what this program is (on stdout, what was asked for); whether that is all there is to do.

    With other variables of CNI there (not `alone`) the caller may be a runtime that forgot the verb: that
    one needs an error, and not an empty success.
    """
    from cni_plugin import about

    text, asked = about.text(arguments)
    _write(1 if asked and alone else 2, text)
    return alone


def _stdin() -> bytes:
    parts = []
    left = STDIN_LIMIT
    try:
        while part := posix.read(0, 1 << 16):
            parts.append(part)
            left -= len(part)
            if left < 0:
                raise Undecodable(f"the network configuration on stdin is longer than {STDIN_LIMIT} bytes")
    except OSError as error:
        raise IoFailure(f"the network configuration cannot be read from stdin: {error.strerror}") from None
    return b"".join(parts)


def _configuration_at_hand() -> dict[str, Any] | None:
    """The configuration that stdin has, or brings within a moment, when variables are so wrong that it was not read.

    Never waited for: who gets the variables wrong may leave stdin open and silent, too.
    """
    from fcntl import ioctl
    from time import monotonic, sleep

    from cni_plugin import config

    read = b""
    deadline = monotonic() + AT_HAND
    try:
        while len(read) <= STDIN_LIMIT:
            ready = int.from_bytes(ioctl(0, _FIONREAD, bytes(4)), sys.byteorder)
            if ready:
                read += posix.read(0, ready)
                try:
                    return config.decode(read)
                except Undecodable:
                    pass  # not all of it, or nothing that will be one
            elif monotonic() > deadline:
                break
            else:
                sleep(AT_HAND / 20)
    except OSError:
        pass  # closed, or of a kind that does not tell
    return None


def _write(descriptor: int, text: str) -> bool:
    """Whether all of the text was taken; where it was not, nobody is left to tell."""
    body = text.encode("utf-8", "backslashreplace")
    try:
        while body:
            body = body[posix.write(descriptor, body) :]
    except OSError:
        return False
    return True


def _origin(error: Exception) -> str:
    """Message and place of an exception, without the `traceback` module."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        place = f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{error}{place}"


if __name__ == "__main__":
    posix._exit(main())  # all is written; taking an interpreter apart would cost as much as a verb
