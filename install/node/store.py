"""The plugin's folders on a node, one per version, and the symlink in the CNI folder that chooses one.

    bin/service-tunnel -> .service-tunnel/0.1.0/service-tunnel

All lies below the one folder that is mounted into the installer's container. The plugin is a folder of files that it
opens while it runs, so a version's folder is never changed once it is there, and one that is no longer chosen stays for
as long as a call of it could run. Another version is chosen by renaming a symlink: no call meets a half of either.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from install.node.files import FileTrouble, locked, telling

PROGRAM = "service-tunnel"
KEPT_FOR = 2 * 3600.0
"""Seconds for which a version that is no longer chosen stays: a call waits for the helper for an hour at most."""
_ASIDE = ".new-"
_WATCHING = "watching"
_START_LIMIT = 60.0


class PluginUnusable(Exception):
    """What was to be installed is not there, or does not start; the text says what and the way out."""


class Watched(Exception):
    """`watch` is at work on this node and would put back what is taken off."""


class Store:
    def __init__(self, bin_dir: Path, say: Callable[[str], None]) -> None:
        self._bin_dir = bin_dir
        self._say = say
        self.folder = bin_dir / f".{PROGRAM}"
        self.link = bin_dir / PROGRAM

    def put(self, source: Path) -> str:
        """Makes the plugin in `source` the one that runs; returns its version's folder name.

        Raises PluginUnusable, FileTrouble. Quiet when it is that already.
        """
        if not (source / PROGRAM).is_file():
            raise PluginUnusable(
                f"there is no plugin in {source}: `make plugin` builds it; name its folder by --source"
            )
        with self._open():
            try:
                name = self._present(source) or self._copied(source)
                self._choose(name)
                self._prune(name)
            except FileTrouble:
                raise
            except OSError as error:
                raise telling(error, "put the plugin into", self._bin_dir) from None
        return name

    def chosen(self) -> str:
        """The folder's name of the version that runs; empty where none does."""
        try:
            found = os.readlink(self.link)
        except OSError:
            return ""
        match = re.fullmatch(rf"\.{PROGRAM}/([^/]+)/{PROGRAM}", found)
        return match[1] if match and (self._bin_dir / found).is_file() else ""

    def purge(self) -> None:
        """Removes symlink and all versions; raises FileTrouble."""
        try:
            if self.link.is_symlink():
                self.link.unlink()
            if self.folder.is_dir():
                shutil.rmtree(self.folder)
        except OSError as error:
            raise telling(error, "remove the plugin from", self._bin_dir) from None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Says to `refuse_while_watched` that somebody puts back what is taken off."""
        with self._open():
            descriptor = os.open(self.folder / _WATCHING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    def refuse_while_watched(self) -> None:
        """Raises Watched."""
        with suppress(FileNotFoundError), (self.folder / _WATCHING).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Watched(
                    "`service-tunnel-install watch` is running on this node and would put everything back: "
                    "stop it first (delete its DaemonSet, or stop its unit), or use --force"
                ) from None

    @contextmanager
    def _open(self) -> Iterator[None]:
        """The folder of versions is there, and no other installer in it."""
        try:
            self.folder.mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            raise telling(error, "make the folder of versions", self.folder) from None
        with locked(self.folder):
            yield

    def _present(self, source: Path) -> str:
        """The version's folder that is the same as `source`, the chosen one first; empty where there is none."""
        wanted = _digest(source)
        names = [path.name for path in self._versions()]
        for name in sorted(names, key=lambda name: name != self.chosen()):
            if _digest(self.folder / name) == wanted:
                return name
        return ""

    def _copied(self, source: Path) -> str:
        for leftover in self.folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        aside = self.folder / f"{_ASIDE}{os.getpid()}"
        try:
            _copy(source, aside)
            version = _version(aside / PROGRAM)
            taken = {path.name for path in self._versions()}
            name = version if version not in taken else f"{version}-{_digest(aside)[:8]}"
            aside.rename(self.folder / name)
            _sync(self.folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._say(f"plugin {name} is in {self.folder}")
        return name

    def _choose(self, name: str) -> None:
        previous = self.chosen()
        if previous == name:
            return
        if self.link.is_dir() and not self.link.is_symlink():
            raise FileTrouble(21, f"{self.link} is a folder: take it away, the plugin's symlink belongs there")
        aside = self.folder / f"{_ASIDE}link-{os.getpid()}"
        with suppress(FileNotFoundError):
            aside.unlink()
        aside.symlink_to(f".{PROGRAM}/{name}/{PROGRAM}")
        aside.replace(self.link)
        _sync(self._bin_dir)
        if previous:
            os.utime(self.folder / previous)  # from now on it is kept for a while
        self._say(f"{self.link} is {name}" + (f", was {previous}" if previous else ""))

    def _prune(self, chosen: str) -> None:
        for path in self._versions():
            if path.name != chosen and time.time() - path.stat().st_mtime > KEPT_FOR:
                shutil.rmtree(path, ignore_errors=True)  # what is left of it goes the next time
                self._say(f"plugin {path.name} is removed: not in use for {KEPT_FOR / 3600:.0f} hours")

    def _versions(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(_ASIDE)]


def _version(program: Path) -> str:
    """What a plugin says of itself: that it starts at all, here, is what this is for too. Raises PluginUnusable."""
    try:
        done = subprocess.run(
            [program, "--version"],
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START_LIMIT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PluginUnusable(
            f"the plugin does not start on this node: {error}; is its folder mounted noexec?"
        ) from None
    match = re.search(r"plugin v([\w.+-]+)", done.stdout + done.stderr)
    if done.returncode or not match:
        raise PluginUnusable(f"the plugin does not start on this node: {(done.stderr or done.stdout).strip()}")
    return match[1]


def _copy(source: Path, target: Path) -> None:
    """Files and folders, open to all, whatever the umask; on the disk when it returns."""
    target.mkdir()
    target.chmod(0o755)
    for path in sorted(source.iterdir()):
        copy = target / path.name
        if path.is_symlink():
            copy.symlink_to(os.readlink(path))
        elif path.is_dir():
            _copy(path, copy)
        else:
            shutil.copyfile(path, copy)
            copy.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
            _sync(copy)
    _sync(target)


def _digest(folder: Path) -> str:
    """Of names, modes as far as they count, and contents."""
    found = hashlib.sha256()
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                content = os.fsencode(os.readlink(path))
            elif path.is_file():
                content = hashlib.sha256(path.read_bytes()).digest()
            else:
                continue
            runs = path.lstat().st_mode & stat.S_IXUSR
            found.update(b"%d %s %s\n" % (bool(runs), os.fsencode(path.relative_to(folder)), content))
    except FileNotFoundError:  # it is being taken apart by hand
        return ""
    return found.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
