"""A table of nf_tables that is ours alone: put in place whole by one transaction, only where it is not so already."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from cni_plugin.netlink import Message, Socket
from cni_plugin.netlink import nftables as nft

TABLE = "svctun"
BEFORE_ALL = -300
"""Priority of `raw`: before connection tracking, and before any marks."""
Elements = Mapping[str, set[bytes]]
"""Set -> its keys."""


def ensure(netfilter: Socket, family: int, content: Sequence[Message], rules: int, elements: Elements) -> bool:
    """Makes the table have this content and these elements, and nothing else; returns whether it was put anew.

    `rules`: how many of the messages of `content` add one. The table carries the content's checksum; elements and the
    number of rules are looked at, since somebody may have taken some out or put others in. Raises NetlinkError.
    """
    fingerprint = f"{TABLE}-{zlib.crc32(b''.join([message.body for message in content])):08x}".encode()
    if nft.table_userdata(netfilter, TABLE, family) == fingerprint and _is_whole(netfilter, family, rules, elements):
        return False
    members = [
        message
        for name, keys in elements.items()
        for message in nft.add_elements(TABLE, name, [(key, b"") for key in sorted(keys)], family)
    ]
    # One transaction: no packet meets half a table. It begins with one to delete, whether or not there is one.
    table = nft.add_table(TABLE, fingerprint, family)
    nft.commit(netfilter, [table, nft.delete_table(TABLE, family), table, *content, *members])
    return True


def _is_whole(netfilter: Socket, family: int, rules: int, elements: Elements) -> bool:
    return nft.count_rules(netfilter, TABLE, family) == rules and all(
        {key for key, _ in nft.dump_elements(netfilter, TABLE, name, family)} == keys for name, keys in elements.items()
    )


def remove(netfilter: Socket, family: int) -> None:
    """Takes the table away, where it is. Raises NetlinkError."""
    if nft.table_userdata(netfilter, TABLE, family) is not None:
        nft.commit(netfilter, [nft.delete_table(TABLE, family)])
