"""Rules that choose a routing table: `fib_rules.h` of the kernel's uapi headers."""

from __future__ import annotations

from _struct import pack, unpack_from

from cni_plugin.netlink import CREATE, EXCL, Message, Socket, attribute, attributes, number, string, text, u8, u32
from cni_plugin.netlink.address import FAMILY, VERSION, unpack
from cni_plugin.netlink.address import pack as pack_address
from cni_plugin.record import Record

NEW_RULE, DEL_RULE, GET_RULE = 32, 33, 34
TO_TABLE, GOTO, NOP = 1, 2, 3


class Rule(Record):
    version: int
    priority: int
    source: str
    """`address/length`, empty for any."""
    table: int
    mark: int
    mask: int
    action: int
    goto: int
    protocol: int
    device: str = ""
    """Packets that are sent by this device only, empty for any."""


def dump_rules(socket: Socket, ip_version: int = 0) -> list[Rule]:
    """All rules, or those of one IP version."""
    result = []
    what = f"listing IPv{ip_version} rules" if ip_version else "listing rules"
    for answer in socket.dump(GET_RULE, pack("=BBBBBBBBI", FAMILY.get(ip_version, 0), *[0] * 8), what):
        if answer[0] not in VERSION:
            continue  # rules of multicast routing have families of their own
        _, _, source_length, _, table, _, _, action, _ = unpack_from("=BBBBBBBBI", answer)
        found = attributes(answer, 12)
        result.append(
            Rule(
                VERSION[answer[0]],
                number(found.get(6, b"")),
                f"{unpack(found[2])}/{source_length}" if source_length and 2 in found else "",
                number(found[15]) if 15 in found else table,
                number(found.get(10, b"")),
                number(found.get(16, b"")),
                action,
                number(found.get(4, b"")),
                number(found.get(21, b"")),
                string(found.get(17, b"")),
            )
        )
    return result


def add_rule(rule: Rule) -> Message:
    return Message(NEW_RULE, CREATE | EXCL, _rule_body(rule), f"adding {_rule_name(rule)}")


def delete_rule(rule: Rule) -> Message:
    return Message(DEL_RULE, 0, _rule_body(rule), f"deleting {_rule_name(rule)}")


def _rule_name(rule: Rule) -> str:
    return f"the IPv{rule.version} rule of priority {rule.priority}"


def _rule_body(rule: Rule) -> bytes:
    source, _, bits = rule.source.partition("/")
    parts = [u32(6, rule.priority), u8(21, rule.protocol)]
    if source:
        parts.append(attribute(2, pack_address(source)))
    if rule.action == TO_TABLE:
        parts.append(u32(15, rule.table))
    if rule.action == GOTO:
        parts.append(u32(4, rule.goto))
    if rule.device:
        parts.append(text(17, rule.device))
    if rule.mask:
        parts += [u32(10, rule.mark), u32(16, rule.mask)]
    table = rule.table if rule.table < 256 else 0
    head = pack("=BBBBBBBBI", FAMILY[rule.version], 0, int(bits or 0), 0, table, 0, 0, rule.action, 0)
    return head + b"".join(parts)


def rule(
    ip_version: int,
    priority: int,
    table: int = 0,
    source: str = "",
    mark: int = 0,
    mask: int = 0,
    action: int = TO_TABLE,
    goto: int = 0,
    protocol: int = 0,
    device: str = "",
) -> Rule:
    return Rule(ip_version, priority, source, table, mark, mask, action, goto, protocol, device)
