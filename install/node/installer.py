"""One look at a node, and what is missing there put in place; also the way back. Repeating it changes nothing.

The plugin comes before the entry that names it, and the entry goes before the plugin.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from install.node import files
from install.node.chain import Json, Write, installation, removal
from install.node.store import Store

_TRIES = 20
"""How often somebody else may change the folder between our look and our change before that is told as a failure."""


class Contended(Exception):
    """The folder's files change faster than they can be read."""


@dataclass(frozen=True)
class Target:
    """Where to install what."""

    bin_dir: Path
    conf_dir: Path
    source: Path
    entry: Json
    drop_in: bool = False
    say: Callable[[str], None] = field(default=print, compare=False)

    @property
    def store(self) -> Store:
        return Store(self.bin_dir, self.say)


@dataclass(frozen=True)
class Found:
    """What a look found, and did."""

    network: str
    """The primary network's file; empty: there is none yet."""
    changed: int
    """Files of the configuration that were changed."""


def install(target: Target) -> Found:
    """Puts plugin and entry in place; raises PluginUnusable, FileTrouble, ConfigUnusable, Contended."""
    target.store.put(target.source)
    return put_entry(target)


def put_entry(target: Target) -> Found:
    """The entry alone; raises FileTrouble, ConfigUnusable, Contended."""
    folder = Path(os.path.realpath(target.conf_dir))
    if not folder.exists():
        return Found("", 0)
    for _ in range(_TRIES):
        with files.locked(folder):
            files.sweep(folder)
            wanted = installation(files.read(folder), target.entry, drop_in=target.drop_in)
            try:
                for change in wanted.changes:
                    files.make(folder, change)
                    done = "has the entry" if isinstance(change, Write) else "is removed"
                    target.say(f"{target.conf_dir / change.name} {done}")
            except files.Changed:
                continue
        return Found(wanted.network, len(wanted.changes))
    raise Contended(
        f"the files in {target.conf_dir} are being rewritten all the time: is another program at odds with us?"
    )


def take_entry_out(conf_dir: Path, say: Callable[[str], None]) -> tuple[str, ...]:
    """Takes our entry out of all chains; returns what could not be judged. Raises FileTrouble, Contended."""
    folder = Path(os.path.realpath(conf_dir))
    if not folder.exists():
        return ()
    for _ in range(_TRIES):
        with files.locked(folder):
            files.sweep(folder)
            changes, troubles = removal(files.read(folder))
            try:
                for change in changes:
                    files.make(folder, change)
                    done = "has the entry no more" if isinstance(change, Write) else "is removed"
                    say(f"{conf_dir / change.name} {done}")
            except files.Changed:
                continue
        return troubles
    raise Contended(f"the files in {conf_dir} are being rewritten all the time: is another program at odds with us?")
