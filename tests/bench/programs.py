"""The programs that are measured, as copies: nobody rebuilds, runs or caches these meanwhile."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conformance import peers
from tests.bench.page_cache import files_below
from tests.testbed.cni import plugin_binary
from tests.testbed.namespaces import REPOSITORY


@dataclass(frozen=True)
class Program:
    """An executable and all files of its own."""

    path: Path
    files: tuple[str, ...]


@dataclass(frozen=True)
class Programs:
    """The two that are compared."""

    ours: Program
    tuning: Program
    """The reference plugin of this name, in Go: small, chained, and in nearly every cluster's chain."""


@contextmanager
def programs() -> Iterator[Programs]:
    """Both, for as long as they are needed."""
    # On the project's disk: the cache of a file in memory, as /tmp may be, cannot be cold.
    (REPOSITORY / "build").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=REPOSITORY / "build"))
    try:
        yield Programs(_copy(plugin_binary().parent, folder / "ours", plugin_binary().name), _tuning(folder / "peer"))
    finally:
        shutil.rmtree(folder)


def _copy(source: Path, target: Path, name: str) -> Program:
    shutil.copytree(source, target, symlinks=True)
    return Program(target / name, files_below(target))


def _tuning(folder: Path) -> Program:
    folder.mkdir()
    shutil.copy(peers.ensure() / "tuning", folder)
    return Program(folder / "tuning", files_below(folder))


def interpreter() -> Path:
    """The Python that the environment was made from: not the environment's, which looks for its settings first."""
    return Path(sys.executable).resolve()
