"""Tables and base chains that came into being with our first rule in them, to be taken away with the last one.

With iptables on nf_tables (`iptables -V` says which), `raw` with PREROUTING is there once somebody has put a rule into
it, and stays when the rule goes. What was not there before is noted in the run folder, which lasts as long as they do:
until the next boot. Without nf_tables nothing is noted: legacy tables belong to their module.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from struct import pack

from cni_plugin.netlink import NETLINK_NETFILTER, Message, NetlinkError, Socket, attributes, nftables, text
from cni_plugin.netlink.address import FAMILY
from node_helper.kernel.note_file import NoteFile

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_GET_TABLE, _DEL_TABLE, _GET_CHAIN, _DEL_CHAIN = 1, 2, 4, 5
_TABLE, _CHAIN, _POLICY = 1, 3, 5
_NOT_WITH_MEMBERS = 0x100
"""NLM_F_NONREC: the kernel refuses where rules or chains are left, so nobody else's can go along."""
_ACCEPT = (1).to_bytes(4, "big")


class BaseChains:
    """What was not there before us, each as IP version, table, chain; "" for the table itself."""

    def __init__(self, run_dir: Path) -> None:
        self.file = NoteFile(run_dir / "base-chains.json")
        noted = self.file.read()
        self._made: set[tuple[int, str, str]] = set()
        with contextlib.suppress(TypeError, ValueError):  # rubbish is as good as nothing
            found = noted if isinstance(noted, list) else []
            self._made = {(int(v), str(table), str(chain)) for v, table, chain in found}

    def before(self, version: int, table: str, chain: str) -> None:
        """Notes what is not there; to be called before our first rule is put."""
        with Socket(NETLINK_NETFILTER) as netfilter:
            missing = {(version, table, name) for name in ("", chain) if _look(netfilter, version, table, name) is None}
        if not missing <= self._made:
            self._made |= missing
            self.file.write(sorted(self._made))

    def remove(self) -> None:
        """Takes away what was noted, where nobody else has put anything into it since. Raises NetlinkError."""
        with Socket(NETLINK_NETFILTER) as netfilter:
            # Chains first: the table's own entry has no name of a chain.
            for version, table, chain in sorted(self._made, key=lambda made: made[2] == ""):
                found = _look(netfilter, version, table, chain)
                if found is None or (chain and found.get(_POLICY, _ACCEPT) != _ACCEPT):
                    continue
                with contextlib.suppress(_InUse):
                    _delete(netfilter, version, table, chain)
        self._made = set()
        self.file.write([])


class _InUse(Exception):
    pass


def _look(netfilter: Socket, version: int, table: str, chain: str) -> dict[int, bytes] | None:
    """The kernel's attributes of a table, or of a chain in it; None where there is none."""
    kind, body = _named(_GET_CHAIN if chain else _GET_TABLE, version, table, chain)
    try:
        return attributes(netfilter.get(kind, body, f"reading nf_tables {table} {chain}"), 4)
    except NetlinkError as error:
        if error.errno in (2, 22, 95):  # ENOENT; EINVAL, EOPNOTSUPP: a kernel without nf_tables
            return None
        raise


def _delete(netfilter: Socket, version: int, table: str, chain: str) -> None:
    kind, body = _named(_DEL_CHAIN if chain else _DEL_TABLE, version, table, chain)
    try:
        nftables.commit(netfilter, [Message(kind, _NOT_WITH_MEMBERS, body, f"deleting nf_tables {table} {chain}")])
    except NetlinkError as error:
        if error.errno == 16:  # EBUSY
            raise _InUse from None
        if error.errno != 2:
            raise


def _named(kind: int, version: int, table: str, chain: str) -> tuple[int, bytes]:
    body = pack(">BBH", FAMILY[version], 0, 0) + text(_TABLE, table)
    return _SUBSYSTEM | kind, body + (text(_CHAIN, chain) if chain else b"")
