"""Ways of spoiling a right call: functions that change a `Call`, or make such a function."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from conformance.contract.calls import VERSIONS, Call, result
from conformance.contract.fault import Spoil


def right(call: Call) -> None:
    """Nothing is wrong."""


def environ(**values: str | None) -> Spoil:
    """Variables by their names without `CNI_`; None: not set."""

    def spoil(call: Call) -> None:
        for name, value in values.items():
            call.environ.pop(f"CNI_{name}", None)
            if value is not None:
                call.environ[f"CNI_{name}"] = value

    return spoil


def config(**values: Any) -> Spoil:
    """Keys of the configuration; `...`: not there."""

    def spoil(call: Call) -> None:
        for name, value in values.items():
            key = {"valid_attachments": "cni.dev/valid-attachments"}.get(name, name)
            call.config.pop(key, None)
            if value is not ...:
                call.config[key] = value

    return spoil


def stdin(body: bytes | str) -> Spoil:
    def spoil(call: Call) -> None:
        call.stdin = body

    return spoil


def truncated(call: Call) -> None:
    call.stdin = call.body()[: len(call.body()) // 2]


def surrounded(before: bytes = b"", after: bytes = b"") -> Spoil:
    def spoil(call: Call) -> None:
        call.stdin = before + call.body() + after

    return spoil


def key(value: bytes) -> Spoil:
    """One more key of the configuration, with a value that no library would write."""

    def spoil(call: Call) -> None:
        call.stdin = call.body()[:-1] + b', "vendor.example/value": ' + value + b"}"

    return spoil


def utf16(call: Call) -> None:
    call.stdin = call.body().decode().encode("utf-16")


def no_utf8(call: Call) -> None:
    call.config["vendor.example/text"] = "???"
    call.stdin = call.body().replace(b"???", b"\xff\xfe")


def prev_result(**changes: Any) -> Spoil:
    """Keys of prevResult; `...`: not there."""

    def spoil(call: Call) -> None:
        changed = {**call.config["prevResult"], **changes}
        call.config["prevResult"] = {key: value for key, value in changed.items() if value is not ...}

    return spoil


def unknown_keys_in_prev_result(call: Call) -> None:
    changed = call.config["prevResult"]
    changed["vendor.example/extension"] = {"ünicode": "✓ 🚀", "nothing": None, "deep": [[[{}]]], "real": 1.5}
    if "interfaces" in changed:
        changed["interfaces"][1]["vendor.example/lane"] = 18446744073709551616


def many_routes(call: Call) -> None:
    routes = [{"dst": f"10.{100 + number // 256}.{number % 256}.0/24", "gw": "10.9.0.1"} for number in range(2000)]
    call.config["prevResult"]["routes"] = routes


def netns_is(kind: str, make: Callable[[str], object]) -> Spoil:
    """CNI_NETNS is the path of something that `make` makes there."""

    def spoil(call: Call) -> None:
        path = f"{call.folder}/{kind}"
        if not os.path.lexists(path):
            make(path)
        call.environ["CNI_NETNS"] = path

    return spoil


def first_version(call: Call) -> None:
    """As before there was a key for it."""
    del call.config["cniVersion"]
    if "prevResult" in call.config:
        call.config["prevResult"] = result(VERSIONS[0], "")
        del call.config["prevResult"]["cniVersion"]
