"""Looks at a node for `node_survey`: sysctls, devices, firewalls' chains, configuration files. Reads only."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cni_plugin.netlink import NetlinkError, Socket, rtnl
from node_helper.kernel.commands import CommandFailed, run
from node_helper.node_survey import Device, ForwardChain, Survey

_CONF = Path("/proc/sys/net/ipv4/conf")
_CNI_FOLDER = "etc/cni/net.d"
_NETWORKD = ("usr/lib/systemd", "usr/local/lib/systemd", "run/systemd", "etc/systemd")
"""Where its configuration is; of files with one name the later folder's counts."""
_ELSEWHERE = "192.0.2.255"
"""An address of a documentation range (RFC 5737): reached by the default route or not at all."""


def survey(root: Path = Path("/")) -> Survey:
    """The node's facts; what cannot be read is as if it were not there. `root`: where its files are."""
    with Socket() as route:
        links = rtnl.dump_links(route)
        try:
            uplink = rtnl.lookup_route(route, _ELSEWHERE).link
        except NetlinkError:
            uplink = 0
    return Survey(
        kernel=os.uname().release,
        rp_filter=_reverse_path_filters(),
        devices=tuple(Device(link.name, link.mtu, link.up) for link in links),
        uplink=next((link.name for link in links if link.index == uplink and link.name != "lo"), ""),
        chains=_forward_chains(),
        networkd=networkd_settings(root),
        cni=cni_types(root),
    )


def _reverse_path_filters() -> dict[str, int]:
    found = {}
    for folder in _CONF.iterdir():
        with contextlib.suppress(OSError, ValueError):  # a device may go meanwhile
            found[folder.name] = int((folder / "rp_filter").read_text())
    return found


def _forward_chains() -> tuple[ForwardChain, ...] | None:
    try:
        return forward_chains(json.loads(run(["nft", "-j", "list", "ruleset"])))
    except (CommandFailed, ValueError, KeyError, TypeError):
        return None


def forward_chains(ruleset: Mapping[str, Any]) -> tuple[ForwardChain, ...]:
    """Base chains of hook forward in what `nft -j list ruleset` prints. Raises KeyError, TypeError for other shapes."""
    chains, last = [], dict[tuple[str, str, str], Any]()
    for one in ruleset["nftables"]:
        if "rule" in one:
            rule = one["rule"]
            last[rule["family"], rule["table"], rule["chain"]] = rule["expr"]
        elif "chain" in one and one["chain"].get("hook") == "forward":
            chains.append(one["chain"])
    return tuple(
        ForwardChain(c["family"], c["table"], c["name"], c.get("policy", "accept"), _refuses(last, c)) for c in chains
    )


def _refuses(last: Mapping[tuple[str, str, str], Any], chain: Mapping[str, Any]) -> bool:
    """Whether the last rule has no condition and ends in a drop or reject."""
    expressions = last.get((chain["family"], chain["table"], chain["name"]), [])
    words = [next(iter(expression)) for expression in expressions if next(iter(expression)) not in ("counter", "log")]
    return words in (["drop"], ["reject"])


def networkd_settings(root: Path) -> dict[str, str] | None:
    """What systemd-networkd's files say in [Network]; None where it does not run (it has made no state)."""
    if not (root / "run/systemd/netif").is_dir():
        return None
    files: dict[str, Path] = {}
    main: list[Path] = []
    for folder in _NETWORKD:
        main += [file] if (file := root / folder / "networkd.conf").is_file() else []
        files |= {file.name: file for file in (root / folder / "networkd.conf.d").glob("*.conf")}
    settings: dict[str, str] = {}
    # Of the main files the last counts, and drop-ins come after it, by name: systemd.syntax(7).
    for file in [*main[-1:], *(files[name] for name in sorted(files))]:
        settings |= _section(file)
    return settings


def _section(file: Path) -> dict[str, str]:
    found, section = {}, ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in map(str.strip, file.read_text().splitlines()):
            if line.startswith("["):
                section = line
            elif section == "[Network]" and "=" in line and not line.startswith(("#", ";")):
                key, _, value = line.partition("=")
                found[key.strip()] = value.strip()
    return found


def cni_types(root: Path) -> frozenset[str]:
    """Types of all plugins in the CNI configuration; files that are no configuration count for nothing."""
    found: set[str] = set()
    for file in sorted((root / _CNI_FOLDER).glob("*.conf*")):
        with contextlib.suppress(OSError, ValueError):
            found.update(_types(json.loads(file.read_text())))
    return frozenset(found)


def _types(network: object) -> Iterable[str]:
    if isinstance(network, dict):
        plugins = network.get("plugins", [network])
        for plugin in plugins if isinstance(plugins, list) else ():
            kind = plugin.get("type") if isinstance(plugin, dict) else None
            if isinstance(kind, str):
                yield kind
