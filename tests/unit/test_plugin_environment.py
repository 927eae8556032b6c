"""The `CNI_…` variables: what each verb needs, and that every fault is named at once."""

from __future__ import annotations

import posixpath
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin import attachment, config, environment
from cni_plugin.errors import CniError, EnvironmentInvalid

WHOLE = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "0123abc",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u-1",
}


def test_a_whole_environment_is_read() -> None:
    invocation = environment.read(WHOLE)
    assert (invocation.command, invocation.container_id, invocation.netns) == ("ADD", "0123abc", "/run/netns/pod")
    assert (invocation.ifname, invocation.path, invocation.pod) == ("eth0", "/opt/cni/bin", "shop/web-1")
    assert invocation.args["K8S_POD_UID"] == "u-1"


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("ADD", {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"}),
        ("CHECK", {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"}),
        ("DEL", {"CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"}),
        ("GC", {"CNI_PATH"}),
        ("STATUS", set()),
        ("VERSION", set()),
    ],
)
@pytest.mark.parametrize("absent", ["unset", "empty"])
def test_all_missing_variables_are_named_at_once(command: str, needed: set[str], absent: str) -> None:
    environ = {"CNI_COMMAND": command} | (
        dict.fromkeys(WHOLE.keys() - {"CNI_COMMAND"}, "") if absent == "empty" else {}
    )
    if not needed:
        assert environment.read(environ).command == command
        return
    with pytest.raises(EnvironmentInvalid) as caught:
        environment.read(environ)
    assert caught.value.code == 4
    assert {name for name in WHOLE if name in caught.value.msg} == needed


def test_an_empty_environment_names_the_command_and_what_add_needs() -> None:
    with pytest.raises(EnvironmentInvalid, match="CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_PATH"):
        environment.read({})


def test_an_unknown_command_names_the_known_ones() -> None:
    with pytest.raises(EnvironmentInvalid, match=r"'add'.*ADD, CHECK, DEL"):
        environment.read(WHOLE | {"CNI_COMMAND": "add"})


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize("identifier", ["-a", ".a", "_a", "a/b", "a b", "a:b", "ä", "a\n", "../x"])
def test_a_container_id_of_other_characters_is_refused(command: str, identifier: str) -> None:
    with pytest.raises(EnvironmentInvalid, match="CNI_CONTAINERID"):
        environment.read(WHOLE | {"CNI_COMMAND": command, "CNI_CONTAINERID": identifier})


@pytest.mark.parametrize("name", [".", "..", "a/b", "a:b", "a b", "a\tb", "sixteen-is-a-lot", "äääääääää"])
def test_an_interface_name_that_linux_refuses_is_refused(name: str) -> None:
    with pytest.raises(EnvironmentInvalid, match="CNI_IFNAME"):
        environment.read(WHOLE | {"CNI_IFNAME": name})


def test_wrong_id_and_wrong_interface_are_named_together() -> None:
    with pytest.raises(EnvironmentInvalid, match=r"CNI_CONTAINERID.*CNI_IFNAME"):
        environment.read(WHOLE | {"CNI_CONTAINERID": "a/b", "CNI_IFNAME": ".."})


def test_what_is_missing_and_what_is_wrong_are_named_together() -> None:
    with pytest.raises(EnvironmentInvalid, match=r"missing: CNI_CONTAINERID; CNI_IFNAME.*; CNI_ARGS"):
        environment.read(WHOLE | {"CNI_CONTAINERID": "", "CNI_IFNAME": "..", "CNI_ARGS": "nonsense"})


@pytest.mark.parametrize("command", ["GC", "STATUS", "VERSION"])
def test_verbs_without_an_attachment_do_not_look_at_its_variables(command: str) -> None:
    environ = WHOLE | {"CNI_COMMAND": command, "CNI_CONTAINERID": "../..", "CNI_IFNAME": "a/b"}
    assert environment.read(environ).command == command


@pytest.mark.parametrize("text", ["nonsense", "A=1;nonsense", "=1"])
def test_arguments_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(EnvironmentInvalid, match="CNI_ARGS"):
        environment.read(WHOLE | {"CNI_ARGS": text})


def test_an_argument_may_hold_an_equals_sign_and_the_list_may_end_in_a_semicolon() -> None:
    assert environment.read(WHOLE | {"CNI_ARGS": "A=b=c;D=;"}).args == {"A": "b=c", "D": ""}


@pytest.mark.parametrize("args", ["", "K8S_POD_NAME=a", "K8S_POD_NAMESPACE=a", "K8S_POD_NAME=;K8S_POD_NAMESPACE=a"])
def test_without_namespace_and_name_there_is_no_kubernetes_pod(args: str) -> None:
    assert environment.read(WHOLE | {"CNI_ARGS": args}).pod == ""


NO_UTF8 = b"\xff".decode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"CNI_IFNAME": NO_UTF8}, "CNI_IFNAME"),
        ({"CNI_NETNS": f"/run/netns/{NO_UTF8}"}, "CNI_NETNS"),
        ({"CNI_ARGS": f"K8S_POD_NAMESPACE={NO_UTF8};K8S_POD_NAME=a"}, "K8S_POD_NAMESPACE"),
        ({"CNI_ARGS": f"K8S_POD_NAMESPACE=a;K8S_POD_NAME={NO_UTF8}"}, "K8S_POD_NAME"),
        ({"CNI_ARGS": f"K8S_POD_UID={NO_UTF8}"}, "K8S_POD_UID"),
    ],
)
def test_what_no_record_can_hold_is_refused_and_named(changes: dict[str, str], named: str) -> None:
    with pytest.raises(EnvironmentInvalid, match=f"{named}.*UTF-8"):
        environment.read(WHOLE | changes)


@pytest.mark.parametrize("args", ["nonsense", "=1", f"K8S_POD_NAME={NO_UTF8}"])
@pytest.mark.parametrize("command", ["DEL", "GC", "STATUS"])
def test_del_does_not_fail_over_arguments_that_it_does_not_need(command: str, args: str) -> None:
    assert environment.read(WHOLE | {"CNI_COMMAND": command, "CNI_ARGS": args}).command == command


# Whatever may stand in a variable: bytes without NUL, as `__main__` decodes them.
VALUES = st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
NEARLY = st.text("ab0._-/:;=\n\t \\\u00e9", max_size=20) | st.sampled_from([".", "..", "../x", "a/../b", "eth0", "c1"])

VALID = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,14}", fullmatch=True)
NAMES = VALID | NEARLY | VALUES


@given(NAMES, NAMES, NAMES)
def test_no_name_that_is_accepted_leads_out_of_the_records_folder(network: str, container: str, interface: str) -> None:
    environ = WHOLE | {"CNI_CONTAINERID": container, "CNI_IFNAME": interface}
    try:
        invocation = environment.read(environ)
        conf = config.read({"name": network}, "1.1.0", "ADD")
    except CniError:
        return
    name = attachment.file_name(conf.name, invocation.container_id, invocation.ifname)
    assert posixpath.dirname(posixpath.normpath(f"/run/x/attachments/{name}")) == "/run/x/attachments"
    assert not name.startswith("."), "such names are not finished records"
    assert name.split(":") == [network, container, interface], "no two attachments share a record"


@given(st.dictionaries(st.sampled_from(sorted(WHOLE)), st.text()))
def test_any_environment_is_read_or_refused(environ: dict[str, str]) -> None:
    with suppress(EnvironmentInvalid):
        environment.read(environ)
