"""Folders that take long to make and never change: made once, kept in the user's cache, found at once after that.

What a folder depends on is in its name, as a hash. One that is being made lies aside and is renamed when it is
complete, under a lock: an interrupted build leaves nothing that looks finished, and two runs do not build twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

UNUSED_FOR = 14 * 86400.0
"""Seconds after which a folder of other pins is removed."""

Say = Callable[[str], None]


def folder() -> Path:
    """Where all of them are kept: SVC_TUNNEL_CACHE, or a folder of the user's cache."""
    chosen = os.environ.get("SVC_TUNNEL_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kube-service-tunnel"


def made_once(name: str, pins: Iterable[str], make: Callable[[Path], Path], what: str, say: Say = print) -> Path:
    """The folder `name` (as `vm` or `peers/cni`) for these pins, made where it is missing.

    `make` gets an empty folder to work in and returns the one in it, or itself, that is to be kept; what it raises
    goes through, and what it left is removed. `what`: in words, with how long it takes.
    """
    kept = folder() / f"{name}-{key(pins)}"
    if kept.is_dir():
        os.utime(kept)
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    short = kept.name.rpartition("-")[0]
    with _locked(kept.with_name(f"{short}.lock"), f"another run is at {what}: waiting for it", say):
        if kept.is_dir():  # which made it while this one waited
            return kept
        for leftover in kept.parent.glob(f"making-{short}-*"):
            shutil.rmtree(leftover)
        making = kept.with_name(f"making-{kept.name}")
        making.mkdir()
        started = time.monotonic()
        say(f"{what}, once, below {kept.parent}")
        try:
            make(making).rename(kept)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        _forget_unused(kept, short)
        say(f"it is there after {time.monotonic() - started:.0f} s")
    return kept


def key(pins: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(pins).encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path, waiting: str, say: Say) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(waiting)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _forget_unused(kept: Path, short: str) -> None:
    for other in kept.parent.glob(f"{short}-*"):
        if other != kept and time.time() - other.stat().st_mtime > UNUSED_FOR:
            shutil.rmtree(other)
