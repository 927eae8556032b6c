"""Where the entry goes in a folder of networks, and that all else there stays: plans over files' contents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from install.node.chain import (
    DROP_IN,
    TYPE,
    WRAPS,
    ConfigUnusable,
    Installation,
    Remove,
    Write,
    installation,
    removal,
    wrapper_of,
)

ENTRY = {"type": TYPE, "capabilities": {"io.kubernetes.cri.pod-annotations": True}}
BRIDGE: dict[str, Any] = {"type": "bridge", "bridge": "cni0"}
LIST: dict[str, Any] = {"cniVersion": "0.3.1", "name": "pods", "plugins": [BRIDGE, {"type": "portmap"}]}
SINGLE: dict[str, Any] = {"cniVersion": "0.4.0", "name": "pods", **BRIDGE}


def texts(files: Mapping[str, Any]) -> dict[str, bytes]:
    return {
        name: content if isinstance(content, bytes) else json.dumps(content).encode() for name, content in files.items()
    }


def after(files: Mapping[str, bytes], changes: tuple[Write | Remove, ...]) -> dict[str, bytes]:
    """The folder when the changes were made."""
    left = dict(files)
    for change in changes:
        assert left.get(change.name) == change.before
        if isinstance(change, Write):
            left[change.name] = change.content
        else:
            del left[change.name]
    return left


def installed(files: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    found = texts(files)
    return {
        name: json.loads(content)
        for name, content in after(found, installation(found, ENTRY, **options).changes).items()
    }


def test_the_entry_is_the_last_of_the_first_list_and_nothing_else_differs() -> None:
    files = {"20-other.conflist": LIST, "10-pods.conflist": {**LIST, "x-vendor": [1, 1.5, None, "ü"]}}
    assert installed(files) == files | {
        "10-pods.conflist": {**files["10-pods.conflist"], "plugins": [*LIST["plugins"], ENTRY]}
    }


def test_keys_keep_their_order_and_numbers_their_kind() -> None:
    text = b'{"plugins": [{"type": "ptp", "z": 18446744073709551616, "a": 1.0, "u": "\xc3\xbc \\ud800"}], "name": "n"}'
    (change,) = installation({"a.conflist": text}, ENTRY).changes
    assert isinstance(change, Write)
    found = change.content.decode()
    assert found.index('"plugins"') < found.index('"name"') and found.index('"z"') < found.index('"a"')
    assert "18446744073709551616" in found and '"a": 1.0' in found and "\\ud800" in found
    assert "cniVersion" not in found


def test_an_entry_that_is_there_is_replaced_where_it_stands_and_doubles_go() -> None:
    old = {"type": TYPE, "helperWait": 1}
    files = {"a.conflist": {**LIST, "plugins": [BRIDGE, old, {"type": "portmap"}, old]}}
    assert installed(files)["a.conflist"]["plugins"] == [BRIDGE, ENTRY, {"type": "portmap"}]


def test_an_entry_before_the_plugin_that_makes_the_interface_is_put_behind() -> None:
    files = {"a.conflist": {**LIST, "plugins": [{"type": TYPE}, BRIDGE]}}
    assert installed(files)["a.conflist"]["plugins"] == [BRIDGE, ENTRY]


def test_a_second_installation_has_nothing_to_do() -> None:
    for files in ({"a.conflist": LIST}, {"a.conf": SINGLE}, {"a.json": SINGLE}):
        found = texts(files)
        once = after(found, installation(found, ENTRY).changes)
        assert installation(once, ENTRY).changes == ()


def test_a_single_plugin_gets_a_list_of_ours_that_sorts_just_before_it() -> None:
    files = {"10-pods.conf": SINGLE, "10-pods-.conf": SINGLE, "11.conflist": LIST}
    found = installed({"10-pods.conf": SINGLE, "11.conflist": LIST})
    own = wrapper_of("10-pods.conf")
    assert found.pop(own) == {"cniVersion": "0.4.0", "name": "pods", WRAPS: "10-pods.conf", "plugins": [SINGLE, ENTRY]}
    assert found == {"10-pods.conf": SINGLE, "11.conflist": LIST} and own < "10-pods.conf"
    assert min(installed(files)) == wrapper_of("10-pods-.conf")


def test_the_list_follows_the_plugin_that_it_wraps_and_goes_with_it() -> None:
    found = texts({"10.conf": SINGLE})
    found = after(found, installation(found, ENTRY).changes)
    found |= texts({"10.conf": {**SINGLE, "mtu": 1400}})
    found = after(found, installation(found, ENTRY).changes)
    assert json.loads(found[wrapper_of("10.conf")])["plugins"][0]["mtu"] == 1400
    del found["10.conf"]
    assert after(found, installation(found, ENTRY).changes) == {}
    assert installation(found, ENTRY).network == ""


def test_a_list_that_comes_before_a_wrapped_plugin_takes_its_place() -> None:
    found = texts({"10.conf": SINGLE})
    found = after(found, installation(found, ENTRY).changes) | texts({"05.conflist": LIST})
    names = set(after(found, installation(found, ENTRY).changes))
    assert names == {"05.conflist", "10.conf"}


def test_an_empty_folder_is_waited_for() -> None:
    assert installation({}, ENTRY) == Installation(())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.conflist", b'{"name": "n", // why\n"plugins": []}', "JSON has no comments"),
        ("a.conflist", b"", "no JSON"),
        ("a.conflist", b'{"name": "n", "plugins": [{"type"', "no JSON"),
        ("a.conflist", b"\xef\xbb\xbf{}", "no JSON"),
        ("a.conflist", b"\xff", "no JSON"),
        ("a.conflist", b"[1]", "no JSON object"),
        ("a.conflist", b"[" * 100_000, "no JSON"),
        ("a.conflist", b'{"plugins": [{"type": "a", "x": NaN}]}', "no number"),
        ("a.conflist", b'{"plugins": [{"type": "a", "x": 1e999}]}', "too large"),
        ("a.conflist", b'{"name": "n"}', "no list 'plugins'"),
        ("a.conflist", b'{"name": "n", "plugins": [1]}', "no list 'plugins'"),
        ("a.conflist", b'{"name": "n", "plugins": [{"type": "service-tunnel"}]}', "no plugin that makes a network"),
        ("a.conf", b'{"name": "n", "plugins": []}', "does not end in .conflist"),
        ("a.conf", b'{"type": "ptp"}', "no 'name'"),
        ("a.conf", b'{"type": "service-tunnel", "name": "n"}', "makes no network"),
    ],
)
def test_a_first_file_that_no_runtime_could_use_is_left_alone_and_named(name: str, content: bytes, says: str) -> None:
    with pytest.raises(ConfigUnusable) as told:
        installation({name: content, "b.conflist": json.dumps(LIST).encode()}, ENTRY)
    assert says in str(told.value) and str(told.value).startswith(name)


def test_a_drop_in_takes_the_entrys_place_and_gives_it_back() -> None:
    inline = {"a.conflist": {**LIST, "plugins": [*LIST["plugins"], ENTRY]}}
    dropped = installed(inline, drop_in=True)
    assert dropped == {"a.conflist": LIST, f"pods/{DROP_IN}": ENTRY}
    assert installed(dropped, drop_in=True) == dropped
    assert installed(dropped) == inline


@pytest.mark.parametrize("changes", [{"loadOnlyInlinedPlugins": True}, {"name": ".."}, {"name": "a/b"}, {"name": 7}])
def test_a_list_that_takes_no_drop_in_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigUnusable, match="without --drop-in"):
        installation(texts({"a.conflist": {**LIST, **changes}}), ENTRY, drop_in=True)


def test_a_single_plugin_is_wrapped_with_drop_ins_too() -> None:
    assert wrapper_of("a.conf") in installed({"a.conf": SINGLE}, drop_in=True)


def test_removal_takes_entries_out_of_every_list_and_our_own_files_away() -> None:
    with_entry = {**LIST, "plugins": [*LIST["plugins"], ENTRY]}
    own = {"name": "pods", WRAPS: "c.conf", "plugins": [SINGLE, ENTRY]}
    files = texts(
        {"a.conflist": with_entry, "b.conflist": with_entry, "c.conf": SINGLE, "c-service-tunnel.conflist": own}
        | {f"pods/{DROP_IN}": ENTRY, "d.conflist": LIST, "e.conflist": b"// nothing of ours"}
    )
    changes, troubles = removal(files)
    left = after(files, changes)
    assert troubles == ()
    assert left.pop("e.conflist") == b"// nothing of ours"
    assert {name: json.loads(content) for name, content in left.items()} == {
        "a.conflist": LIST,
        "b.conflist": LIST,
        "c.conf": SINGLE,
        "d.conflist": LIST,
    }


def test_removal_says_what_it_cannot_judge_and_leaves_it() -> None:
    files = {
        "a.conflist": b'{"type": "service-tunnel" // ours',
        "b.conflist": b'{"plugins":[{"type":"service-tunnel"}]}',
    }
    changes, troubles = removal(files)
    assert changes == () and [trouble.partition(" ")[0] for trouble in troubles] == ["a.conflist", "b.conflist"]
    assert all("by hand" in trouble for trouble in troubles)


# ---- any folder ---------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLUGINS = st.builds(
    lambda kind, keys: {**keys, "type": kind},
    st.sampled_from(["ptp", "bridge", "portmap", TYPE]),
    st.dictionaries(st.sampled_from(["mtu", "ipam", "x"]), VALUES, max_size=2),
)
LISTS = st.builds(
    lambda keys, name, plugins: {**keys, "name": name, "plugins": plugins},
    st.dictionaries(st.sampled_from(["cniVersion", "disableCheck", "y"]), VALUES, max_size=2),
    st.sampled_from(["pods", "n"]),
    st.lists(PLUGINS, max_size=4),
)
SINGLES = st.builds(lambda plugin: {**plugin, "name": "pods"}, PLUGINS)
STEMS = st.sampled_from(["00", "10-pods", "10-pods-a", "10-pods-service-tunnel", "99", "z"])
FOLDERS = st.dictionaries(
    st.builds(str.__add__, STEMS, st.just(".conflist")), LISTS | st.just(b"{"), max_size=3
).flatmap(
    lambda lists: st.dictionaries(
        st.builds(str.__add__, STEMS, st.sampled_from([".conf", ".json"])), SINGLES, max_size=3
    ).map(lambda singles: {**lists, **singles})
)


@given(FOLDERS, st.booleans())
def test_any_folder_has_the_entry_once_in_the_chain_that_a_runtime_takes_and_all_else_as_it_was(
    folder: dict[str, Any], drop_in: bool
) -> None:
    files = texts(folder)
    try:
        plan = installation(files, ENTRY, drop_in=drop_in)
    except ConfigUnusable:
        return
    found = after(files, plan.changes)
    assert bool(plan.network) == bool(folder)
    if not folder:
        return
    first = min(name for name in found if "/" not in name)
    chosen = json.loads(found[first])
    drop_ins = [json.loads(content) for name, content in found.items() if "/" in name]
    ours = [plugin for plugin in [*chosen["plugins"], *drop_ins] if plugin["type"] == TYPE]
    assert ours == [ENTRY] and chosen["plugins"][0]["type"] != TYPE
    before = json.loads(files[plan.network])
    if first == plan.network:
        others = [plugin for plugin in before["plugins"] if plugin["type"] != TYPE]
        assert [plugin for plugin in chosen["plugins"] if plugin["type"] != TYPE] == others
        assert {**chosen, "plugins": 0} == {**before, "plugins": 0} and list(chosen) == list(before)
    else:
        assert chosen["plugins"] == [before, ENTRY] and found[plan.network] == files[plan.network]
    assert all(found[name] == content for name, content in files.items() if name != plan.network)
    assert installation(found, ENTRY, drop_in=drop_in).changes == ()
    assert not [name for change in [removal(found)[0]] for name in after(found, change) if name not in files]


@given(st.binary(max_size=200), st.sampled_from(["a.conflist", "a.conf", "a.json"]))
def test_whatever_a_file_holds_there_is_a_plan_or_a_reason(content: bytes, name: str) -> None:
    with suppress(ConfigUnusable):
        assert installation({name: content}, ENTRY).network == name
    removal({name: content})
