"""A profile says how one plugin is examined: its binary, its own keys, and how it is known to differ.

A file of TOML, see `conformance/profiles`. A known difference is no excuse: its line names the cases, the aspect and
what is seen there, word for word. A case that differs otherwise fails, and so does one that does not differ any more.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from conformance.contract.calls import VERSIONS


@dataclass(frozen=True)
class Difference:
    """One line of the table: where the plugin is known not to do what the specification says, and why."""

    cases: tuple[str, ...]
    """Patterns of names of cases, as in a shell."""
    aspect: str
    """`outcome`, `names`, `error`, `output`, `result` or `left`: see `examine`."""
    seen: str
    """What is seen instead."""
    why: str

    def covers(self, case: str, aspect: str) -> bool:
        return aspect == self.aspect and any(fnmatchcase(case, pattern) for pattern in self.cases)


@dataclass(frozen=True)
class Profile:
    """One plugin, configured in one way."""

    name: str
    type: str
    """The plugin's name in a configuration."""
    binary: str
    """Its path; what is in braces is filled in by whoever runs it."""
    config: Mapping[str, Any]
    """Its own keys; `{folder}` in a text is a folder that the world made for it."""
    versions: tuple[str, ...] = VERSIONS
    """What VERSION has to list, at least."""
    only: tuple[str, ...] = ("*",)
    """Patterns of names of cases; the others are left to another profile of the same plugin."""
    logs: tuple[str, ...] = ()
    """Files that it may write to when it fails, and leave behind."""
    differences: tuple[Difference, ...] = ()

    def has(self, case: str) -> bool:
        return any(fnmatchcase(case, pattern) for pattern in self.only)

    def own_keys(self, folder: Path) -> dict[str, Any]:
        filled = _filled(self.config, str(folder))
        assert isinstance(filled, dict)
        return filled

    def log_files(self, folder: Path) -> set[Path]:
        return {Path(_filled(path, str(folder))) for path in self.logs}


def load(path: Path) -> Profile:
    """The profile in a file; raises ValueError naming the file and what is wrong with it."""
    try:
        plain = tomllib.loads(path.read_text())
        lines = [_difference(line) for line in plain.pop("difference", [])]
        for key in ("versions", "only", "logs"):
            if key in plain:
                plain[key] = tuple(plain[key])
        return replace(Profile(path.stem, **plain), differences=tuple(lines))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _difference(line: Mapping[str, Any]) -> Difference:
    cases = line["cases"]
    return Difference((cases,) if isinstance(cases, str) else tuple(cases), line["aspect"], line["seen"], line["why"])


def _filled(value: Any, folder: str) -> Any:
    if isinstance(value, str):
        return value.replace("{folder}", folder)
    if isinstance(value, Mapping):
        return {key: _filled(inner, folder) for key, inner in value.items()}
    return [_filled(inner, folder) for inner in value] if isinstance(value, list) else value
