"""The chain entry: defaults, types, versions, and the result of the plugin before."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin import config
from cni_plugin.config import NetConf, ValidAttachment
from cni_plugin.errors import ConfigInvalid, Undecodable, VersionUnsupported

LEAST = {"cniVersion": "1.0.0", "name": "net", "type": "service-tunnel"}


def read(extra: dict[str, Any], command: str = "ADD") -> NetConf:
    plain = LEAST | extra
    return config.read(plain, config.version_of(plain), command)


def test_all_keys_but_the_type_have_the_contracts_defaults() -> None:
    conf = read({})
    assert conf == NetConf("1.0.0", name="net")
    assert (conf.helper_socket, conf.run_dir) == ("/run/service-tunnel/helper.sock", "/run/service-tunnel")
    assert (conf.state_dir, conf.when_helper_is_away) == ("/var/lib/service-tunnel", "retry-if-tunnelled")
    assert (conf.helper_wait, conf.exempt_namespaces) == (10.0, ("kube-system", "service-tunnel"))
    assert (conf.log_level, conf.log_file) == ("info", "/var/log/service-tunnel.log")


def test_every_key_of_the_contract_is_read() -> None:
    conf = read(
        {
            "helperSocket": "/a.sock",
            "runDir": "/a",
            "stateDir": "/b",
            "whenHelperIsAway": "pass",
            "helperWait": 3,
            "exemptNamespaces": ["x", "y"],
            "tunnels": [{"vips": ["198.51.100.7"], "mode": "gre"}],
            "log": {"level": "debug", "file": "/c.log"},
            "capabilities": {"io.kubernetes.cri.pod-annotations": True},
            "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"cmd.nu/tunnel": "198.51.100.8"}},
            "prevResult": {"cniVersion": "1.0.0", "ips": []},
        }
    )
    assert conf == NetConf(
        "1.0.0",
        name="net",
        helper_socket="/a.sock",
        run_dir="/a",
        state_dir="/b",
        when_helper_is_away="pass",
        helper_wait=3.0,
        exempt_namespaces=("x", "y"),
        tunnels=({"vips": ["198.51.100.7"], "mode": "gre"},),
        log_level="debug",
        log_file="/c.log",
        pod_annotations={"cmd.nu/tunnel": "198.51.100.8"},
        prev_result={"cniVersion": "1.0.0", "ips": []},
    )


def test_null_counts_as_absent() -> None:
    nothing = dict.fromkeys(("helperSocket", "runDir", "helperWait", "tunnels", "log", "runtimeConfig", "prevResult"))
    assert read(nothing) == read({})


WRONG = [
    ("helperSocket", 7),
    ("helperSocket", "relative.sock"),
    ("runDir", ["/a"]),
    ("stateDir", {}),
    ("whenHelperIsAway", "sometimes"),
    ("whenHelperIsAway", True),
    ("helperWait", "10"),
    ("helperWait", True),
    ("helperWait", -1),
    ("helperWait", 10**9),
    ("exemptNamespaces", "kube-system"),
    ("exemptNamespaces", [1]),
    ("tunnels", {"vips": []}),
    ("tunnels", ["198.51.100.7"]),
    ("log", "/var/log/x"),
    ("log.level", "loud"),
    ("log.file", 1),
    ("runtimeConfig", []),
    ("prevResult", "nothing"),
    ("name", 5),
    ("name", "a/b"),
]


def nested(key: str, value: object) -> dict[str, Any]:
    first, _, second = key.partition(".")
    return {first: {second: value} if second else value}


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_value_gives_code_7_and_names_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigInvalid, match=f"{key} is ") as caught:
        read(nested(key, value))
    assert caught.value.code == 7


def test_all_wrong_keys_are_named_at_once() -> None:
    with pytest.raises(ConfigInvalid, match=r"runDir .*helperWait .*log is "):
        read({"runDir": 1, "helperWait": "x", "log": []})


def test_annotations_of_another_type_are_named() -> None:
    with pytest.raises(ConfigInvalid, match="pod-annotations"):
        read({"runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"cmd.nu/tunnel": 5}}})


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_del_goes_on_with_the_default_and_notes_the_problem(key: str, value: object) -> None:
    conf = read(nested(key, value), "DEL")
    assert any(key.partition(".")[0] in problem for problem in conf.problems)
    assert conf.run_dir == "/run/service-tunnel"


@pytest.mark.parametrize("raw", [b"", b"{", b"rubbish", b"\xff\x00", b"[" * 100_000])
def test_what_is_no_json_gives_code_6(raw: bytes) -> None:
    with pytest.raises(Undecodable) as caught:
        config.decode(raw)
    assert caught.value.code == 6


@pytest.mark.parametrize("raw", [b"[]", b'"text"', b"null", b"1"])
def test_json_that_is_no_object_gives_code_6(raw: bytes) -> None:
    with pytest.raises(Undecodable, match="not an object"):
        config.decode(raw)


SUPPORTED = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize(("command", "since"), [("ADD", 0), ("DEL", 0), ("CHECK", 4), ("GC", 6), ("STATUS", 6)])
def test_a_verb_is_known_from_the_version_that_brought_it(version: str, command: str, since: int) -> None:
    extra = {"cniVersion": version, "cni.dev/valid-attachments": []}
    if SUPPORTED.index(version) >= since:
        assert read(extra, command).cni_version == version
    else:
        with pytest.raises(VersionUnsupported) as caught:
            read(extra, command)
        assert caught.value.code == 1


@pytest.mark.parametrize("version", ["0.0.9", "2.0.0", "1.1", "latest"])
def test_an_unsupported_version_gives_code_1_and_names_the_supported(version: str) -> None:
    with pytest.raises(VersionUnsupported) as caught:
        config.version_of({"cniVersion": version})
    assert version in caught.value.msg
    assert "1.1.0" in caught.value.details


def test_a_version_of_another_type_gives_code_7() -> None:
    with pytest.raises(ConfigInvalid, match="cniVersion"):
        config.version_of({"cniVersion": 1.0})


@pytest.mark.parametrize("plain", [{}, {"cniVersion": ""}])
def test_without_a_version_it_is_the_first(plain: dict[str, Any]) -> None:
    assert config.version_of(plain) == "0.1.0"


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_gc_reads_the_valid_attachments(key: str) -> None:
    listed = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "net1", "more": 1}]
    conf = read({"cniVersion": "1.1.0", key: listed}, "GC")
    assert conf.valid_attachments == (ValidAttachment("a", "eth0"), ValidAttachment("b", "net1"))


def test_gc_takes_null_for_no_attachment_as_go_writes_an_empty_list() -> None:
    assert read({"cniVersion": "1.1.0", "cni.dev/valid-attachments": None}, "GC").valid_attachments == ()


def test_gc_without_a_list_knows_that_it_was_not_told() -> None:
    assert read({"cniVersion": "1.1.0"}, "GC").valid_attachments is None


@pytest.mark.parametrize("extra", [{"cni.dev/valid-attachments": "a"}, {"cni.dev/valid-attachments": [{"x": 1}]}])
def test_gc_without_a_readable_list_is_refused_and_removes_nothing(extra: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid, match=r"cni\.dev/valid-attachments"):
        read({"cniVersion": "1.1.0"} | extra, "GC")


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"ip4": {"ip": "10.0.0.2/24"}, "ip6": {"ip": "2001:db8::2/64"}}, ("10.0.0.2", "2001:db8::2")),
        ({"ips": [{"version": "4", "address": "10.0.0.2/24", "interface": 0}]}, ("10.0.0.2",)),
        ({"ips": [{"address": "2001:db8::2/64"}, {"address": "10.0.0.2/24"}]}, ("2001:db8::2", "10.0.0.2")),
        ({}, ()),
        ({"ips": None}, ()),
    ],
)
def test_addresses_come_from_results_of_every_version(result: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert config.addresses(result) == expected


@pytest.mark.parametrize("result", [{"ips": "x"}, {"ips": [5]}, {"ips": [{}]}, {"ip4": {"ip": 5}}, {"ip6": []}])
def test_a_result_of_another_shape_gives_code_7(result: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid, match="prevResult"):
        config.addresses(result)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["cniVersion", "name", "helperSocket", "runDir", "stateDir", "whenHelperIsAway", "helperWait", "log", "tunnels"]
KEYS += ["exemptNamespaces", "runtimeConfig", "prevResult", "cni.dev/valid-attachments"]


@given(st.dictionaries(st.sampled_from(KEYS), JSON), st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS"]))
def test_any_object_is_read_or_refused(plain: dict[str, Any], command: str) -> None:
    with suppress(VersionUnsupported, ConfigInvalid):
        config.read(plain, config.version_of(plain), command)


@pytest.mark.parametrize("key", ["runDir", "stateDir", "helperSocket"])
@pytest.mark.parametrize("path", ["run", "./run", "../run", "/run/..", "/run/../etc", "/..", "", "/a\0b", "/\ud800"])
def test_a_path_that_says_not_plainly_where_it_leads_is_refused(key: str, path: str) -> None:
    with pytest.raises(ConfigInvalid, match=key):
        config.read({"name": "pods", key: path}, "1.1.0", "ADD")


@pytest.mark.parametrize("path", ["/run/x", "/run/..x", "/run/x..", "/run/.x/", "/run//x", "/var/run/ü"])
def test_a_path_that_does_is_taken_as_it_is(path: str) -> None:
    assert config.read({"name": "pods", "runDir": path}, "1.1.0", "ADD").run_dir == path


def test_of_a_wrong_configuration_what_the_log_needs_is_known() -> None:
    plain = {"name": "pods", "helperWait": "soon", "log": {"level": "loud", "file": "/var/log/x"}}
    found = config.of_the_log(plain)
    assert (found.name, found.log_level, found.log_file) == ("pods", "info", "/var/log/x")
    assert config.of_the_log({"name": 7, "log": []}).log_file == "/var/log/service-tunnel.log"
