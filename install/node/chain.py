"""What is to become of the files of a CNI configuration folder: pure, from their contents to a list of changes.

Runtimes take the first file by name. Is it a list of plugins (`.conflist`), our entry goes to its end; is it a single
plugin (`.conf`, `.json`), a list of our own wraps it. That list's name is the plugin's with `-service-tunnel` in front
of the dot: it sorts just before what it wraps, since `-` sorts before `.`, and nothing fits in between that was not
first before. What is in a file stays there as it is: keys, their order, numbers, `cniVersion`.

Our entry is known by its type, our lists by a key that libcni passes over. So nothing is put twice, whoever put it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TYPE = "service-tunnel"
WRAPS = "cmd.nu/wraps"
"""Key of a list of ours: the name of the file that it wraps."""
LIST = ".conflist"
SUFFIXES = (".conf", LIST, ".json")
"""What libcni takes for configuration."""
DROP_IN = "service-tunnel.conf"
"""Our file in the folder of a network, which libcni 1.3 reads: `<folder>/<network>/*.conf`."""

Json = dict[str, Any]


class ConfigUnusable(ValueError):
    """A file is not what a runtime could use, so it is left alone; the text names it and the way out."""


@dataclass(frozen=True)
class Write:
    """Put `content` where `before` is (None: nothing)."""

    name: str
    content: bytes
    before: bytes | None
    like: str
    """The file whose mode and owner it has."""


@dataclass(frozen=True)
class Remove:
    name: str
    before: bytes


Change = Write | Remove


@dataclass(frozen=True)
class Installation:
    """What leads to our entry being in the primary network's chain."""

    changes: tuple[Change, ...]
    network: str = ""
    """The file that has the primary network; empty: there is none yet."""


def is_configuration(name: str) -> bool:
    return name.endswith(SUFFIXES)


def installation(files: Mapping[str, bytes], entry: Json, *, drop_in: bool = False) -> Installation:
    """What puts `entry` into the primary network's chain; raises ConfigUnusable.

    `files`: by name, relative to the folder, those that are configuration and the drop-ins of ours. With `drop_in` the
    entry goes into a file of its own, where the primary network is a list that takes such files.
    """
    wrappers = _wrappers(files)
    others = [name for name in files if name not in wrappers and "/" not in name]
    if not others:
        return Installation(_removals(files, wrappers))
    primary = min(others)
    content = _parsed(primary, files[primary])
    if primary.endswith(LIST):
        plugins = _plugins(primary, content)
        if drop_in:
            folder_file = f"{_folder(primary, content)}/{DROP_IN}"
            wanted = {primary: {**content, "plugins": _without(plugins)}, folder_file: entry}
        else:
            wanted = {primary: {**content, "plugins": _with(plugins, entry)}}
    else:
        wanted = {wrapper_of(primary): _wrapped(primary, content, entry)}
    stale = [name for name in (*wrappers, *(name for name in files if "/" in name)) if name not in wanted]
    writes = tuple(
        Write(name, _text(name, value), files.get(name), primary)
        for name, value in wanted.items()
        if not _says(files.get(name), value)
    )
    return Installation((*_removals(files, stale), *writes), primary)


def removal(files: Mapping[str, bytes]) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """What takes our entry out of every list, and our own files away; and what could not be judged, in words."""
    wrappers = _wrappers(files)
    changes: list[Change] = list(_removals(files, [*wrappers, *(name for name in files if "/" in name)]))
    troubles = []
    for name in sorted(files):
        if name in wrappers or "/" in name:
            continue
        try:
            content = _parsed(name, files[name])
            plugins = _plugins(name, content) if name.endswith(LIST) else []
        except ConfigUnusable as error:
            if TYPE.encode() in files[name]:
                troubles.append(f"{error}; it names {TYPE}: take that entry out by hand")
            continue
        left = _without(plugins)
        if len(left) < len(plugins):
            changes.append(Write(name, _text(name, {**content, "plugins": left}), files[name], name))
    return tuple(changes), tuple(troubles)


def wrapper_of(name: str) -> str:
    """The name of the list that wraps a single plugin's file."""
    return f"{name.rpartition('.')[0]}-{TYPE}{LIST}"


def _wrappers(files: Mapping[str, bytes]) -> list[str]:
    """The lists of ours: they have the key, and the name that goes with it."""
    found = []
    for name, content in files.items():
        if name.endswith(f"-{TYPE}{LIST}") and "/" not in name:
            try:
                wraps = _parsed(name, content).get(WRAPS)
            except ConfigUnusable:
                continue
            if isinstance(wraps, str) and wrapper_of(wraps) == name:
                found.append(name)
    return found


def _removals(files: Mapping[str, bytes], names: list[str]) -> tuple[Remove, ...]:
    return tuple(Remove(name, files[name]) for name in names)


def _wrapped(name: str, plugin: Json, entry: Json) -> Json:
    for key in ("name", "type"):
        if not isinstance(plugin.get(key), str) or not plugin[key]:
            what = "a list of plugins, but its name does not end in .conflist" if "plugins" in plugin else f"no {key!r}"
            raise ConfigUnusable(f"{name} has {what}, so no runtime could use it: mend it, or take it away")
    if plugin["type"] == TYPE:
        raise ConfigUnusable(
            f"{name}: {TYPE} alone makes no network; take the file away, or sort it behind the network's"
        )
    head: Json = {key: plugin[key] for key in ("cniVersion", "name") if key in plugin}
    return {**head, WRAPS: name, "plugins": [plugin, entry]}


def _plugins(name: str, content: Json) -> list[Json]:
    plugins = content.get("plugins")
    if not isinstance(plugins, list) or not all(isinstance(plugin, dict) for plugin in plugins):
        raise ConfigUnusable(f"{name} has no list 'plugins' of objects: mend it, or take it away")
    if not _without(plugins):
        raise ConfigUnusable(f"{name} has no plugin that makes a network: mend it, or take it away")
    return plugins


def _with(plugins: list[Json], entry: Json) -> list[Json]:
    """Our entry once: where one is already, else last."""
    at = next((place for place, plugin in enumerate(plugins) if plugin.get("type") == TYPE), len(plugins))
    before, after = plugins[:at], plugins[at:]
    return [*_without(before), entry, *_without(after)] if at else [*_without(after), entry]


def _without(plugins: list[Json]) -> list[Json]:
    return [plugin for plugin in plugins if plugin.get("type") != TYPE]


def _folder(name: str, content: Json) -> str:
    """The name of the folder whose files libcni adds to this list; raises ConfigUnusable where it adds none."""
    network = content.get("name")
    if content.get("loadOnlyInlinedPlugins"):
        raise ConfigUnusable(
            f"{name} has loadOnlyInlinedPlugins, so nothing can be dropped in: install without --drop-in"
        )
    if not isinstance(network, str) or not network or "/" in network or network in (".", ".."):
        raise ConfigUnusable(f"{name} has no 'name' that could be a folder's: mend it, or install without --drop-in")
    return network


def _parsed(name: str, content: bytes) -> Json:
    try:
        found = json.loads(content.decode(), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # also what is no UTF-8
        raise ConfigUnusable(
            f"{name} is no JSON ({error}), so it is left alone: mend it (JSON has no comments), or take it away"
        ) from None
    if not isinstance(found, dict):
        raise ConfigUnusable(f"{name} is no JSON object, so it is left alone: mend it, or take it away")
    return found


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number


def _text(name: str, value: Json) -> bytes:
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only the escaped form can carry
        return (json.dumps(value, indent=2) + "\n").encode()
    except RecursionError:
        raise ConfigUnusable(f"{name} is nested too deeply, so it is left alone") from None


def _says(content: bytes | None, value: Json) -> bool:
    """Whether a file already says this, in whatever form. Order counts, and 1 is not 1.0, nor true."""
    if content is None:
        return False
    try:
        return _text("", _parsed("", content)) == _text("", value)
    except ConfigUnusable:
        return False
