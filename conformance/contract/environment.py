"""Faults of the environment: variables that are missing or wrong, and namespaces that are none."""

from __future__ import annotations

import os
from collections.abc import Iterator

from conformance.contract.calls import SUCCESS, VERBS
from conformance.contract.fault import (
    AS_BEFORE,
    ATTACHMENT,
    BEST_EFFORT,
    CONFIGURED,
    ENDS,
    EVERY,
    FILES_AS_FOUND,
    MISSING,
    NEWEST,
    NOTHING,
    PARAMETERS,
    Fault,
    Spoil,
)
from conformance.contract.spoiling import environ, netns_is

NEEDS = {
    "ADD": ("CONTAINERID", "NETNS", "IFNAME"),
    "CHECK": ("CONTAINERID", "NETNS", "IFNAME"),
    "DEL": ("CONTAINERID", "IFNAME"),
    "GC": ("PATH",),
}
"""Section 2, "Required environment parameters" of each verb, besides CNI_COMMAND."""

WRONG_CONTAINER_IDS = ("-a", ".a", "_a", "..", "a/b", "../a", "a b", "a:b", "a;b", "a\n", "ä", "a\t")
RIGHT_CONTAINER_IDS = ("a", "0", "A_b.c-d", "0" * 64)
WRONG_INTERFACES = (".", "..", "a" * 16, "a/b", "a:b", "a b", "a\tb", "eth0\n", "é" * 8)
RIGHT_INTERFACES = ("a" * 15, "-", "eth0.100", "eth0@x", "...")
ODD_ARGUMENTS = ("A", "=B", "A=B;C", "A==B", ";;", "A=1;A=2", "\x01=\x02")

_CNI = "CNI_{}".format


def _missing() -> Iterator[Fault]:
    for verb, needs in NEEDS.items():
        for name in needs:
            for absence, versions in ((None, EVERY), ("", ENDS)):
                word = "not set" if absence is None else "empty"
                spoil = environ(**{name: absence})
                yield Fault(
                    f"{_CNI(name)} {word}", spoil, (MISSING,), PARAMETERS, (verb,), versions, names=(_CNI(name),)
                )
        everything = dict.fromkeys(("CONTAINERID", "NETNS", "IFNAME", "ARGS", "PATH"))
        names = tuple(map(_CNI, needs))
        yield Fault("no variable set", environ(**everything), (MISSING,), PARAMETERS, (verb,), EVERY, names)
    pair = ("CONTAINERID", "IFNAME")
    spoil = environ(**dict.fromkeys(pair, ""))
    yield Fault("two empty", spoil, (MISSING,), PARAMETERS, ATTACHMENT, ENDS, tuple(map(_CNI, pair)))


ENVIRONMENT = (
    *_missing(),
    *(
        Fault(
            f"CNI_PATH {word}",
            environ(PATH=absence),
            (SUCCESS, MISSING),
            "section 2 has it as optional, libcni's plugin library demands it",
            ("ADD", "DEL", "CHECK", "STATUS"),
            NEWEST,
            names=("CNI_PATH",),
            before=("ADD",),
        )
        for word, absence in (("not set", None), ("empty", ""))
    ),
    *(
        Fault(
            f"CNI_CONTAINERID {text!r}",
            environ(CONTAINERID=text),
            (MISSING,),
            PARAMETERS,
            ATTACHMENT,
            NEWEST if text != "../a" else EVERY,
            names=("CNI_CONTAINERID",),
        )
        for text in WRONG_CONTAINER_IDS
    ),
    *(
        Fault(
            f"CNI_IFNAME {text!r}",
            environ(IFNAME=text),
            (MISSING,),
            "libcni's rules for names: shorter than 16 bytes, not . or .., no slash, colon or white space; "
            + PARAMETERS,
            ATTACHMENT,
            NEWEST if text != ".." else EVERY,
            names=("CNI_IFNAME",),
        )
        for text in WRONG_INTERFACES
    ),
    *(
        Fault(f"CNI_CONTAINERID {text!r}", environ(CONTAINERID=text), (SUCCESS,), PARAMETERS, ("ADD", "DEL"), NEWEST)
        for text in RIGHT_CONTAINER_IDS
    ),
    *(
        Fault(f"CNI_IFNAME {text!r}", environ(IFNAME=text), (SUCCESS,), BEST_EFFORT, ("DEL",), NEWEST)
        for text in RIGHT_INTERFACES
    ),
    Fault(
        "two wrong names",
        environ(CONTAINERID="a/b", IFNAME="a/b"),
        (MISSING,),
        PARAMETERS,
        ATTACHMENT,
        NEWEST,
        names=("CNI_CONTAINERID", "CNI_IFNAME"),
    ),
    Fault(
        "one missing, one wrong",
        environ(CONTAINERID=None, IFNAME="a/b"),
        (MISSING,),
        PARAMETERS,
        ATTACHMENT,
        NEWEST,
        names=("CNI_CONTAINERID", "CNI_IFNAME"),
    ),
    *(
        Fault(
            f"CNI_ARGS {text!r}",
            environ(ARGS=text),
            (SUCCESS, MISSING),
            "section 2, Parameters: KEY=VALUE pairs separated by semicolons; what to do with others is open",
            ("ADD", "CHECK"),
            NEWEST,
            names=("CNI_ARGS",),
            before=("ADD",),
        )
        for text in ODD_ARGUMENTS
    ),
    *(
        Fault(f"CNI_ARGS {text!r}", environ(ARGS=text), (SUCCESS,), BEST_EFFORT, ("DEL",), NEWEST, before=("ADD",))
        for text in ODD_ARGUMENTS
    ),
    Fault(
        "CNI_ARGS unknown",
        environ(ARGS="COLOUR=blue"),
        (SUCCESS,),
        "section 3: generic arguments go to every plugin, with no indication if they are going to be consumed",
        ATTACHMENT,
        NEWEST,
        before=("ADD",),
    ),
    *(
        Fault(
            f"CNI_COMMAND {command!r}",
            environ(COMMAND=command),
            (MISSING,),
            PARAMETERS,
            CONFIGURED,
            NEWEST,
            names=("CNI_COMMAND",),
        )
        for command in ("NOPE", "add", "ADD ")
    ),
    *(
        Fault(
            f"CNI_COMMAND {word}",
            environ(COMMAND=absence),
            (SUCCESS, MISSING),
            "section 2 demands it; libcni's plugin library explains the plugin on stderr instead",
            VERBS,
            NEWEST,
            names=("CNI_COMMAND",),
            output=NOTHING,
            leaves=AS_BEFORE,
        )
        for word, absence in (("not set", None), ("empty", ""))
    ),
)

NAMESPACES: dict[str, Spoil] = {
    "not there": environ(NETNS="/run/netns/never-was"),
    "a file": netns_is("file", lambda path: open(path, "x").close()),
    "a folder": netns_is("folder", os.mkdir),
    "a pipe": netns_is("pipe", os.mkfifo),
    "a link to nothing": netns_is("link", lambda path: os.symlink("nothing", path)),
    "another kind of namespace": environ(NETNS=f"/proc/{os.getpid()}/ns/mnt"),
}

# What comes after the configuration was read is done in every version, since the forms of results differ. But not the
# pipe: `tuning` hangs there, and each time that costs the limit.
NAMESPACE = (
    *(
        Fault(
            f"CNI_NETNS is {text}",
            spoil,
            (MISSING,),
            "section 2, Parameters: a path to the network namespace; " + PARAMETERS,
            ("ADD", "CHECK"),
            NEWEST if text == "a pipe" else EVERY,
            names=("CNI_NETNS",),
            before=("ADD",),
        )
        for text, spoil in NAMESPACES.items()
    ),
    *(
        Fault(
            f"CNI_NETNS is {text}",
            spoil,
            (SUCCESS,),
            BEST_EFFORT,
            ("DEL",),
            NEWEST if text == "a pipe" else EVERY,
            before=("ADD",),
            leaves=FILES_AS_FOUND,
        )
        for text, spoil in {**NAMESPACES, "not set": environ(NETNS=None), "empty": environ(NETNS="")}.items()
    ),
    Fault(
        "CNI_NETNS is the plugin's own",
        environ(NETNS="/proc/self/ns/net"),
        (SUCCESS, MISSING, "code 8"),
        "not in the specification; libcni's plugin library refuses it with a code of its own",
        ("ADD",),
        EVERY,
    ),
    Fault(
        "CNI_NETNS is the plugin's own",
        environ(NETNS="/proc/self/ns/net"),
        (SUCCESS,),
        BEST_EFFORT,
        ("DEL",),
        EVERY,
        leaves=AS_BEFORE,
    ),
)
