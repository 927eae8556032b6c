"""The one place that starts programs: the xtables tools, `ip netns`, `modprobe`.

A program runs in the network namespace in which the calling thread is.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

_SECONDS = 30.0


class CommandFailed(OSError):
    """A program is missing, failed, or did not end; the text has its words."""


def run(argv: Sequence[str], text: str = "") -> str:
    """Standard output of a program that is given `text`; raises CommandFailed."""
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        raise CommandFailed(2, f"{argv[0]} is not installed on this node (or not in PATH)") from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(110, f"{' '.join(argv)} did not end within {_SECONDS:.0f} s") from None
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise CommandFailed(5, f"{' '.join(argv)}: {words}")
    return done.stdout
