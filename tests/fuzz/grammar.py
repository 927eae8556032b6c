"""Whole and nearly whole inputs, as hypothesis' strategies of bytes: what mutations alone would hardly ever hit."""

from __future__ import annotations

import json
from typing import Any

import msgpack  # type: ignore[import-untyped]
from hypothesis import strategies as st

from cni_plugin.environment import REQUIRED
from cni_plugin.tunnel import MODES
from cni_plugin.versions import SUPPORTED

_INTEGERS = st.integers(-(2**63), 2**64 - 1) | st.sampled_from((0, -1, 1, 80, 65535, 65536, True, False))
_WORDS = st.text(max_size=8) | st.sampled_from(("", "..", "../x", "/", "a:b", "\0", "\ud800", "null", "kube-system"))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=3),
    max_leaves=6,
)
_PLAIN = st.recursive(
    st.none() | st.booleans() | _INTEGERS | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | _INTEGERS | st.binary(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


def _or(strategy: st.SearchStrategy[Any], rubbish: st.SearchStrategy[Any], one_in: int = 8) -> st.SearchStrategy[Any]:
    """Mostly what is right, else what is not."""
    return st.integers(1, one_in).flatmap(lambda roll: rubbish if roll == 1 else strategy)


_ADDRESS = _or(
    st.sampled_from(("198.51.100.7", "2001:db8::7", "203.0.113.1")),
    st.sampled_from(("::", "0.0.0.0", "198.51.100.300", "fe80::1%e", "::ffff:192.0.2.1", "")),
    16,
)
_PORT = _or(st.sampled_from((1, 80, 8080, 65535)), st.integers(-1, 70000), 16)


def _some(fields: dict[str, st.SearchStrategy[Any]], rubbish: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A map as it should be, or with a field missing, wrong, or too many."""
    whole = st.fixed_dictionaries(fields)
    names = st.sampled_from(sorted(fields))
    lacking = st.builds(lambda found, name: {key: found[key] for key in found if key != name}, whole, names)
    wrong = st.builds(lambda found, name, value: {**found, name: value}, whole, names | _WORDS, rubbish)
    return _or(whole, lacking | wrong, 4)


def _json_bytes(value: Any, ascii_only: bool, spaces: bool) -> bytes:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=1 if spaces else None)
    return text.encode("utf-8", "surrogatepass")


def _packed(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _careless(value: Any) -> bytes:
    """Packed also where a text is no Unicode, as a careless writer would."""
    packed: bytes = msgpack.packb(value, unicode_errors="surrogatepass")
    return packed


JSON = st.builds(_json_bytes, _JSON, st.booleans(), st.booleans()) | st.text(
    alphabet='[]{}",:0123456789.eE+-\\unltrefasINy \n\t', max_size=30
).map(str.encode)

_NAME = _or(st.sampled_from(("shop", "web-1", "")), _WORDS)
_PATH = _or(st.sampled_from(("/run/x", "/var/lib//x/")), st.sampled_from(("/run/../x", "run", "/\0", "/\ud800")), 16)
_CONFIG = _some(
    {
        "cniVersion": st.sampled_from(SUPPORTED),
        "name": st.sampled_from(("pods", "p.o_d-s", "a" * 300)),
        "type": st.just("service-tunnel"),
        "helperSocket": _PATH,
        "runDir": _PATH,
        "stateDir": _PATH,
        "whenHelperIsAway": st.sampled_from(("retry-if-tunnelled", "retry", "pass")),
        "helperWait": _or(st.sampled_from((0, 1.5, 3600)), st.sampled_from((3601, -1, 10**400, 1e308)), 16),
        "exemptNamespaces": st.lists(_WORDS, max_size=3),
        "tunnels": st.lists(_some({"vips": st.lists(_ADDRESS), "mode": st.sampled_from(MODES)}, _JSON), max_size=3),
        "log": _some({"level": st.sampled_from(("debug", "error")), "file": st.just("") | _PATH}, _JSON),
        "runtimeConfig": _some(
            {
                "io.kubernetes.cri.pod-annotations": _some(
                    {"cmd.nu/tunnel": _ADDRESS, "cmd.nu/tunnel-mode": st.sampled_from(MODES)}, _WORDS
                )
            },
            _JSON,
        ),
        "prevResult": _some(
            {
                "ips": st.lists(_some({"address": _ADDRESS.map(lambda text: f"{text}/24")}, _JSON), max_size=3),
                "ip4": _some({"ip": _ADDRESS}, _JSON),
                "routes": st.lists(_JSON, max_size=2),
            },
            _JSON,
        ),
        "cni.dev/valid-attachments": st.lists(_some({"containerID": _WORDS, "ifname": _WORDS}, _JSON), max_size=3),
        "cni.dev/attachments": st.none(),
    },
    _JSON,
)
CONFIG = st.builds(_json_bytes, _CONFIG, st.booleans(), st.booleans())

_NEARLY = st.sampled_from((b"../x", b"..", b".", b"a/b", b"a:b", b"a b", b"-a", b"\xff", b"a\n", b"sixteen-letters-"))
_VALUE = _or(
    st.sampled_from((b"c1", b"eth0", b"/run/netns/x", b"K8S_POD_NAMESPACE=a;K8S_POD_NAME=b")), st.binary(max_size=20)
)
_NULL = b"\0"
ENVIRONMENT = _some(
    {
        "CNI_COMMAND": st.sampled_from([name.encode() for name in REQUIRED]),
        "CNI_CONTAINERID": _or(st.sampled_from((b"c1", b"0123456789abcdef")), _NEARLY | _VALUE, 3),
        "CNI_NETNS": _VALUE,
        "CNI_IFNAME": _or(st.sampled_from((b"eth0", b"fifteen-letters")), _NEARLY | _VALUE, 3),
        "CNI_PATH": st.just(b"/opt/cni/bin"),
        "CNI_ARGS": _or(st.just(b""), _VALUE | st.lists(_VALUE, max_size=4).map(b";".join), 2),
    },
    st.binary(max_size=6),
).map(
    lambda found: _NULL.join(
        [name.encode("utf-8", "surrogatepass") + b"=" + value.replace(_NULL, b"") for name, value in found.items()]
    )
)
"""As in /proc/PID/environ."""

_DEEP = st.builds(
    lambda outer, depth: outer * depth + b"\xc0", st.sampled_from((b"\x91", b"\x81\x01")), st.integers(1, 200)
)
MESSAGE = _PLAIN.map(_packed) | st.binary(max_size=40) | _DEEP

_TUNNELS = _some(
    {
        "tunnels": st.lists(
            _some(
                {
                    "vips": st.lists(_ADDRESS, max_size=3),
                    "mode": st.sampled_from(MODES),
                    "remaps": st.lists(
                        _or(st.tuples(st.sampled_from(("tcp", "udp")), _PORT, _PORT), _PLAIN), max_size=3
                    ),
                },
                _PLAIN,
            ),
            max_size=3,
        ),
        "sources": st.lists(_ADDRESS, max_size=3),
    },
    _PLAIN,
)
ANSWER = _some(
    {"v": st.just(1), "answer": st.sampled_from(("tunnels", "tunnels", "none", "unknown")), "pod": _TUNNELS}, _PLAIN
).map(_careless)

QUESTION = _some(
    {
        "v": st.just(1),
        "op": st.sampled_from(("tunnels", "trace")),
        "namespace": _NAME,
        "name": _NAME,
        "ips": st.lists(_ADDRESS, max_size=3),
        "flow": _some(
            {
                "protocol": st.sampled_from(("tcp", "udp", "icmp")),
                "source": _ADDRESS,
                "source_port": _PORT,
                "destination": _ADDRESS,
                "destination_port": _PORT,
            },
            _PLAIN,
        ),
    },
    _PLAIN,
).map(_careless)

RECORD = _some(
    {
        "v": _or(st.just(1), _INTEGERS),
        "network": st.just("pods"),
        "container": st.just("c1"),
        "interface": st.just("eth0"),
        "netns": st.just("/run/netns/x"),
        "inode": st.just(4026532000),
        "namespace": _NAME,
        "name": _NAME,
        "uid": _NAME,
        "state": st.sampled_from(("adding", "ready", "gone")),
        "standalone": st.booleans(),
        "ips": st.lists(_ADDRESS, max_size=3),
        "owned": st.none() | st.dictionaries(st.text(max_size=3), _PLAIN, max_size=2),
        "tunnels": _TUNNELS,
    },
    _PLAIN,
).map(_careless)
