"""Faults of what comes on stdin: no JSON, too much of it, and configurations that are wrong."""

from __future__ import annotations

from typing import Any

from conformance.contract.calls import SUCCESS, UNKNOWN_VERSION, VERSIONS
from conformance.contract.fault import (
    AS_BEFORE,
    BEST_EFFORT,
    CONFIGURATION,
    CONFIGURED,
    ERROR_CODES,
    EVERY,
    NEWEST,
    NO_JSON,
    WRONG,
    Fault,
    Spoil,
)
from conformance.contract.spoiling import (
    config,
    first_version,
    key,
    many_routes,
    no_utf8,
    prev_result,
    stdin,
    surrounded,
    truncated,
    unknown_keys_in_prev_result,
    utf16,
)

UNDECODABLE: dict[str, Spoil] = {
    "empty": stdin(b""),
    "white space": stdin(b" \n"),
    "truncated": truncated,
    "no JSON": stdin(b"cniVersion: 1.1.0\n"),
    "an array": stdin(b"[]"),
    "a text": stdin(b'"ADD"'),
    "a number": stdin(b"7"),
    "two objects": surrounded(after=b"{}"),
    "rubbish after the object": surrounded(after=b"]"),
    "UTF-16": utf16,
    "text that is no UTF-8": no_utf8,
    "NaN": stdin(b'{"cniVersion": "1.1.0", "name": "n", "x": NaN}'),
    "a name with a line break": stdin(b'{"cniVersion": "1.1.0", "name": "n\n"}'),
}
"""Faults that no JSON parser lets pass; `null` is one for some."""

LARGE: dict[str, Spoil] = {
    "16 MiB of white space": surrounded(before=b" " * (16 << 20)),
    "a text of 16 MiB": config(**{"vendor.example/long": "x" * (16 << 20)}),
    "a hundred thousand brackets": surrounded(after=b"[" * 100_000),
    "a depth of a hundred thousand": key(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a number of a hundred thousand digits": key(b"9" * 100_000),
}

STDIN = (
    *(
        Fault(
            f"stdin: {text}",
            spoil,
            (SUCCESS, NO_JSON) if verb == "DEL" else (NO_JSON,),
            ERROR_CODES,
            (verb,),
            EVERY if text == "truncated" else NEWEST,
            leaves=AS_BEFORE,
        )
        for text, spoil in UNDECODABLE.items()
        for verb in CONFIGURED
    ),
    Fault("stdin: null", stdin(b"null"), (NO_JSON, WRONG), ERROR_CODES, CONFIGURED, NEWEST),
    Fault("stdin closed", stdin("closed"), ("code 5", NO_JSON), "section 5, Error: code 5", CONFIGURED, NEWEST),
    Fault("stdin cannot be read", stdin("unreadable"), ("code 5",), "section 5, Error: code 5", CONFIGURED, NEWEST),
    *(
        Fault(
            f"stdin: {text}",
            spoil,
            (SUCCESS, "code 5", NO_JSON, WRONG),
            "may be refused, in an orderly way",
            CONFIGURED,
            NEWEST,
            before=("ADD",),
        )
        for text, spoil in LARGE.items()
    ),
)

TYPE = (NO_JSON, WRONG)
"""Wrong types: not decodable for some, wrong for others."""

WRONG_NAMES: dict[str, Any] = {"not there": ..., "empty": "", "'../x'": "../x", "'a b'": "a b", "'-a'": "-a"}
WRONG_PREV_RESULTS: dict[str, Any] = {"a text": "yes", "a list": [], "a number": 5, "false": False}
NO_PREV_RESULTS: dict[str, Any] = {"not there": ..., "null": None, "empty": {}}
WRONG_LISTS: dict[str, Any] = {"a text": "x", "an object": {"containerID": "a"}, "of numbers": [1]}

CONFIG = (
    Fault(
        "cniVersion unknown",
        config(cniVersion=UNKNOWN_VERSION),
        ("code 1",),
        "section 5, Error: code 1, incompatible CNI version",
        CONFIGURED,
        NEWEST,
    ),
    *(
        Fault(
            f"cniVersion {text!r}",
            config(cniVersion=text),
            ("code 1", NO_JSON),
            "section 5, Error: code 1, or 6: failed to decode version info from string",
            CONFIGURED,
            NEWEST,
        )
        for text in ("newest", "1.1", "0.0.1", "1.1.0 ", "1.2.0", "1.1.0-rc1")
    ),
    Fault("cniVersion a number", config(cniVersion=1.1), TYPE, ERROR_CODES, CONFIGURED, NEWEST),
    Fault(
        "cniVersion not there",
        first_version,
        (SUCCESS,),
        "libcni's plugin library: 0.1.0, which did not have the key",
        ("ADD", "DEL"),
        VERSIONS[:1],
    ),
    *(
        Fault(f"{key} {text}", config(name=value), (WRONG,), "section 1: name; " + CONFIGURATION, verbs, EVERY)
        for key, verbs in (("name", ("ADD", "CHECK", "GC")),)
        for text, value in WRONG_NAMES.items()
    ),
    *(
        Fault(
            f"name {text}",
            config(name=value),
            (SUCCESS, WRONG),
            "section 1: name; DEL is best-effort, STATUS may do without",
            ("DEL", "STATUS"),
            EVERY,
        )
        for text, value in WRONG_NAMES.items()
    ),
    Fault("name a number", config(name=5), TYPE, ERROR_CODES, ("ADD", "CHECK", "GC"), EVERY),
    Fault(
        "keys that nobody knows",
        config(**{"vendor.example/key": {"a": [1, None]}, "cni.dev/later": "x", "args": {"cni": {"later": 1}}}),
        (SUCCESS, "code 2"),
        "section 1: plugins may define additional fields and may generate an error if called with unknown fields",
        CONFIGURED,
        EVERY,
        before=("ADD",),
    ),
    Fault(
        "prevResult not there",
        config(prevResult=...),
        (WRONG,),
        "section 3: given to every plugin but the first; " + CONFIGURATION,
        ("ADD", "CHECK"),
        EVERY,
    ),
    Fault("prevResult null", config(prevResult=None), (WRONG,), CONFIGURATION, ("ADD", "CHECK"), EVERY),
    *(
        Fault(f"prevResult {text}", config(prevResult=value), TYPE, ERROR_CODES, ("ADD", "CHECK"), EVERY)
        for text, value in WRONG_PREV_RESULTS.items()
    ),
    *(
        Fault(
            f"prevResult {text}",
            config(prevResult=value),
            (SUCCESS,),
            "section 2, DEL: return without error if prevResult is empty",
            ("DEL",),
            EVERY,
            before=("ADD",),
        )
        for text, value in NO_PREV_RESULTS.items()
    ),
    *(
        Fault(f"prevResult {text}", config(prevResult=value), (SUCCESS,), BEST_EFFORT, ("DEL",), EVERY, before=("ADD",))
        for text, value in WRONG_PREV_RESULTS.items()
    ),
    *(
        Fault(
            f"prevResult with {text}",
            spoil,
            (SUCCESS,),
            "section 5: a result equivalent to the provided prevResult; cniVersion as supplied on input",
            ("ADD",),
            versions,
        )
        for text, spoil, versions in (
            ("keys that nobody knows", unknown_keys_in_prev_result, EVERY),
            ("two thousand routes", many_routes, VERSIONS[2:]),  # before, results had them elsewhere
            ("no cniVersion", prev_result(cniVersion=...), NEWEST),
            ("another cniVersion", prev_result(cniVersion="1.0.0"), NEWEST),
        )
    ),
    Fault(
        "list null",
        config(valid_attachments=None),
        (SUCCESS,),
        "what libcni passes for an empty list",
        ("GC",),
        NEWEST,
    ),
    Fault(
        "list not there",
        config(valid_attachments=...),
        (SUCCESS, WRONG),
        "section 2, GC: the runtime must provide it, libcni does not always; generally complete without error",
        ("GC",),
        NEWEST,
        before=("ADD",),
        leaves="",
    ),
    *(
        Fault(
            f"list {text}", config(valid_attachments=value), TYPE, "section 2, GC: an array of objects", ("GC",), NEWEST
        )
        for text, value in WRONG_LISTS.items()
    ),
)
