"""What is fuzzed, and what must hold for whatever goes in: the oracles.

A check says whether the input was taken; one that is refused in the way that is promised is as good. Everything else
that comes out of it is a finding.
"""

from __future__ import annotations

import io
import json
import posixpath
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgpack  # type: ignore[import-untyped]
from hypothesis import strategies as st

from cni_plugin import attachment, config, environment, helper_client, jsontext, standalone, tunnel, wire
from cni_plugin.errors import CniError, ConfigInvalid, EnvironmentInvalid, Undecodable
from node_helper import questions
from tests.fuzz import grammar


@dataclass(frozen=True, slots=True)
class Target:
    """One parser."""

    subject: str
    """What is parsed, whose word it is."""
    grammar: st.SearchStrategy[bytes]
    check: Callable[[bytes], bool]
    """Whether the input was taken; raises where something is wrong."""


def _same(one: object, other: object) -> bool:
    """Equal in type, too: 1 is neither True nor 1.0, and a NaN is a NaN."""
    return repr(one) == repr(other)


# --- JSON, and the configuration made of it -------------------------------------------------------------


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("out of range")
    return value


def check_json(body: bytes) -> bool:
    """The standard library is the judge, except for what only it takes: NaN, and numbers beyond a float."""
    refused = False
    try:
        expected = json.loads(body.decode(), parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        expected = ...  # each gives up at a depth of its own
    except ValueError:
        refused = True
    try:
        value = jsontext.loads(body)
    except jsontext.JsonError:
        assert refused or expected is ..., "refused, but it is JSON"
        return False
    assert not refused, f"read as {value!r}, but it is no JSON"
    assert expected is ... or _same(value, expected), f"{value!r} is not {expected!r}"
    written = jsontext.dumps(value)
    assert written == json.dumps(value, separators=(",", ":")), "written otherwise than by the standard library"
    assert _same(jsontext.loads(written), value), "another value after a round trip"
    return True


def check_config(body: bytes) -> bool:
    try:
        plain = config.decode(body)
    except Undecodable as error:
        _told(error, (6,))
        return False
    config.of_the_log(plain)
    try:
        version = config.version_of(plain)
    except CniError as error:
        _told(error, (1, 7))
        return False
    return [_read(plain, version, command) for command in ("ADD", "CHECK", "DEL", "GC", "STATUS")].count(True) > 1


def _read(plain: dict[str, Any], version: str, command: str) -> bool:
    try:
        conf = config.read(plain, version, command)
    except CniError as error:
        _told(error, () if command == "DEL" else (1, 7))  # DEL never fails over its configuration
        return False
    _usable(conf, command)
    return True


def _told(error: CniError, codes: tuple[int, ...]) -> None:
    """The runtime can read it, and it has a code that is right here."""
    assert error.code in codes, f"code {error.code}: {error}"
    told = json.loads(error.to_json("1.1.0"))
    assert told["code"] == error.code and told["msg"]


def _usable(conf: config.NetConf, command: str) -> None:
    for path in (conf.run_dir, conf.state_dir, conf.helper_socket, conf.log_file or "/"):
        assert path.startswith("/") and ".." not in path.split("/") and "\0" not in path
        path.encode()
    assert 0 <= conf.helper_wait <= 3600
    assert conf.log_level in config.LOG_LEVELS and conf.when_helper_is_away in config.WHEN_AWAY
    assert environment.is_identifier(conf.name) or (command in ("DEL", "STATUS") and not conf.name)
    assert not conf.problems or command == "DEL"
    with suppress(ConfigInvalid):
        wanted = standalone.tunnels_of(conf)
        if wanted is not None:
            assert _same(tunnel.from_plain(wire.unpack(wire.pack(tunnel.to_plain(wanted)))), wanted)
    if conf.prev_result is not None:
        assert _same(json.loads(jsontext.dumps(conf.prev_result)), conf.prev_result), "prevResult is not passed on"
        with suppress(ConfigInvalid):
            wire.pack(list(config.addresses(conf.prev_result)))


def check_environment(body: bytes) -> bool:
    pairs = [variable.partition(b"=") for variable in body.split(b"\0")]
    environ = {name.decode("utf-8", "replace"): value.decode("utf-8", "surrogateescape") for name, _, value in pairs}
    try:
        call = environment.read(environ)
    except EnvironmentInvalid as error:
        _told(error, (4,))
        return False
    assert call.command in environment.REQUIRED
    if call.command not in ("ADD", "CHECK", "DEL"):
        return True
    name = attachment.file_name("pods", call.container_id, call.ifname)
    assert posixpath.normpath(f"/run/attachments/{name}") == f"/run/attachments/{name}", "it leads elsewhere"
    assert attachment.owner(name) == ("pods", call.container_id, call.ifname)
    if call.command != "DEL":
        texts = [call.netns, *[call.args.get(f"K8S_POD_{key}", "") for key in ("NAMESPACE", "NAME", "UID")]]
        assert wire.unpack(wire.pack([call.container_id, call.ifname, *texts]))[2:] == texts
    return True


# --- msgpack, and what is made of it --------------------------------------------------------------------


class _Pairs(list[tuple[Any, Any]]):
    """A map with all that it says, also of keys that it has twice."""


def _beyond(value: Any, depth: int = 0) -> bool:
    """Whether the library read what our format does not have."""
    if depth > wire.DEPTH_LIMIT or isinstance(value, (msgpack.ExtType, msgpack.Timestamp)):
        return True
    if isinstance(value, _Pairs):
        return any(not isinstance(key, (str, int, bytes)) or _beyond(inner, depth + 1) for key, inner in value)
    return isinstance(value, list) and any(_beyond(inner, depth + 1) for inner in value)


def check_message(body: bytes) -> bool:
    """The msgpack library is the judge, except for what our format leaves out."""
    try:
        expected = msgpack.unpackb(body, strict_map_key=False)
        readable = True
    except Exception:  # it has many, some of them the interpreter's
        readable = False
    try:
        value = wire.unpack(body)
    except wire.WireError:
        taken = False
        told = msgpack.unpackb(body, strict_map_key=False, object_pairs_hook=_Pairs) if readable else None
        assert not readable or _beyond(told), f"refused, but it is {expected!r}"
    else:
        taken = True
        assert readable, f"read as {value!r}, but it is no msgpack"
        assert _same(value, expected), f"{value!r} is not {expected!r}"
        assert _same(wire.unpack(wire.pack(value)), value), "another value after a round trip"
        assert _same(wire.receive(io.BytesIO(wire.frame(value)).read), value)
    with suppress(wire.WireError):
        wire.receive(io.BytesIO(body).read)  # the same bytes as a frame: a length, and what follows
    return taken


def _unpacked(body: bytes) -> Any:
    with suppress(wire.WireError):
        return wire.unpack(body)
    return None


def check_question(body: bytes) -> bool:
    question = _unpacked(body)
    if not isinstance(question, dict):
        return False
    taken = 0
    with suppress(ValueError):
        asked = questions.new_pod(question)
        assert [type(text) for text in (asked.namespace, asked.name, *asked.addresses)].count(str) == 2 + len(
            asked.addresses
        )
        taken += 1
    with suppress(ValueError):
        flow = questions.flow(question)
        assert flow.source.version == flow.destination.version
        assert 0 <= flow.source_port <= 65535 and 0 <= flow.destination_port <= 65535
        taken += 1
    return taken > 0


def check_answer(body: bytes) -> bool:
    try:
        answer = helper_client.answer_of(_unpacked(body))
    except (ValueError, helper_client.NotYet):
        return False
    assert answer.kind in (helper_client.TUNNELS, helper_client.NONE)
    _sound(answer.pod)
    return True


def _sound(pod: tunnel.PodTunnels) -> None:
    assert _same(tunnel.from_plain(wire.unpack(wire.pack(tunnel.to_plain(pod)))), pod), "another pod after a round trip"
    for one in pod.tunnels:
        assert one.mode in tunnel.MODES
        assert all(set(vip) <= set("0123456789abcdefABCDEF.:") for vip in one.vips)
        for remap in one.remaps:
            assert remap.protocol in ("tcp", "udp")
            assert 0 < remap.port < 65536 and 0 < remap.target_port < 65536


def check_record(body: bytes) -> bool:
    try:
        record = attachment.from_plain(_unpacked(body))
    except ValueError:
        return False
    again = attachment.from_plain(wire.unpack(wire.pack(attachment.to_plain(record))))
    assert _same(again, record), "another record after a round trip"
    _sound(record.tunnels)
    return True


TARGETS = {
    "json": Target("JSON text", grammar.JSON, check_json),
    "config": Target("the chain entry, the runtime's and the operator's", grammar.CONFIG, check_config),
    "environment": Target("CNI_… variables, the runtime's", grammar.ENVIRONMENT, check_environment),
    "message": Target("msgpack, from either side of the socket", grammar.MESSAGE, check_message),
    "question": Target("a question to the helper", grammar.QUESTION, check_question),
    "answer": Target("an answer to the plugin", grammar.ANSWER, check_answer),
    "record": Target("an attachment record", grammar.RECORD, check_record),
}
