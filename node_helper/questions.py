"""What the socket's questions say, checked: from plain values, as they came, to what the helper acts on.

Everybody who may ask is trusted, but not to be of this version, or without faults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from node_helper.hmark import Flow

_PROTOCOLS = ("tcp", "udp", "icmp")
_PORTS = range(65536)


@dataclass(frozen=True, slots=True)
class NewPod:
    """The pod of which the plugin asks."""

    namespace: str
    name: str
    addresses: tuple[str, ...]
    container: str = ""
    interface: str = ""
    """Which of its interfaces the plugin is called for."""


def new_pod(question: Mapping[Any, Any]) -> NewPod:
    """The question `tunnels`; raises ValueError naming what is wrong with it."""
    listed = question.get("ips")
    if listed is None:
        listed = []
    if not isinstance(listed, list):
        raise ValueError("ips is not a list")
    addresses = tuple(str(ip_address(_text(address, "ips"))) for address in listed)
    return NewPod(
        _text(question.get("namespace"), "namespace"),
        _text(question.get("name"), "name"),
        addresses,
        _text(question.get("container", ""), "container"),
        _text(question.get("interface", ""), "interface"),
    )


def patterns(question: Mapping[Any, Any]) -> tuple[str, ...]:
    """Which Services the question `status` is about, none: all; raises ValueError naming what is wrong with it."""
    asked = question.get("patterns", [])
    if not isinstance(asked, list):
        raise ValueError("patterns is not a list")
    return tuple(_text(pattern, "patterns") for pattern in asked)


def flow(question: Mapping[Any, Any]) -> Flow:
    """The question `trace`; raises ValueError naming what is wrong with it."""
    asked = question.get("flow")
    if not isinstance(asked, dict):
        raise ValueError("flow is not a map")
    protocol = asked.get("protocol")
    if protocol not in _PROTOCOLS:
        raise ValueError(f"protocol is not one of {', '.join(_PROTOCOLS)}")
    source, destination = (ip_address(_text(asked.get(key), key)) for key in ("source", "destination"))
    if source.version != destination.version:
        raise ValueError("source and destination are not of one IP version")
    return Flow(protocol, source, _port(asked, "source_port"), destination, _port(asked, "destination_port"))


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} is not text")
    return value


def _port(asked: Mapping[Any, Any], key: str) -> int:
    value = asked.get(key)
    if type(value) is not int or value not in _PORTS:
        raise ValueError(f"{key} is not a port")
    return value
