"""What the built plugin makes of its input: variables, stdin, the configuration; and what it says to a person.

What the CNI specification and the project's own contract promise is held here, whatever the plugin is made of.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import __version__
from tests.fake_helper import NONE, FakeHelper
from tests.kernel.plugin_calls import ANY_VERB, TIME_LIMIT, VARIABLES, VERSIONS, Pod, Reply, result

# ---- VERSION ------------------------------------------------------------------------------------------------------


def test_version_lists_every_version(pod: Pod) -> None:
    assert pod.call("VERSION", stdin=b'{"cniVersion":"1.0.0"}').succeeded().json == {
        "cniVersion": "1.1.0",
        "supportedVersions": VERSIONS,
    }


def test_version_needs_no_other_variable(pod: Pod) -> None:
    done = subprocess.run([pod.binary], env={"CNI_COMMAND": "VERSION"}, capture_output=True, timeout=TIME_LIMIT)
    assert Reply(done).succeeded().json["supportedVersions"] == VERSIONS


def test_version_does_not_wait_for_a_stdin_that_stays_silent(pod: Pod) -> None:
    with subprocess.Popen(
        [pod.binary], env=pod.environ("VERSION"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout
        assert running.wait(TIME_LIMIT) == 0
        assert json.loads(running.stdout.read())["supportedVersions"] == VERSIONS


@pytest.mark.parametrize("stdin", [b"", b"rubbish", b"[]"])
def test_version_does_not_care_what_stdin_says(pod: Pod, stdin: bytes) -> None:
    pod.call("VERSION", stdin=stdin).succeeded()


def closed_stdin(pod: Pod, command: str) -> Reply:
    shell = ["sh", "-c", 'exec "$0" <&-', str(pod.binary)]
    return Reply(subprocess.run(shell, env=pod.environ(command), capture_output=True, timeout=TIME_LIMIT))


def test_version_works_with_a_closed_stdin(pod: Pod) -> None:
    closed_stdin(pod, "VERSION").succeeded()


@pytest.mark.parametrize("command", ANY_VERB)
def test_the_other_verbs_report_a_closed_stdin(pod: Pod, command: str) -> None:
    closed_stdin(pod, command).failed(5)


# ---- the environment ----------------------------------------------------------------------------------------------

NEEDS = {
    "ADD": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"},
    "CHECK": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"},
    "DEL": {"CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"},
}


@pytest.mark.parametrize("absent", [None, ""], ids=["unset", "empty"])
@pytest.mark.parametrize("command", NEEDS)
def test_all_missing_variables_are_named_at_once(pod: Pod, command: str, absent: str | None) -> None:
    error = pod.call(command, environ=dict.fromkeys(VARIABLES, absent)).failed(4)
    assert {name for name in VARIABLES if name in error["msg"]} == NEEDS[command]


@pytest.mark.parametrize("command", NEEDS)
def test_a_single_missing_variable_is_named_alone(pod: Pod, command: str) -> None:
    for name in NEEDS[command]:
        error = pod.call(command, environ={name: ""}).failed(4)
        assert {other for other in VARIABLES if other in error["msg"]} == {name}


@pytest.mark.parametrize("command", ["add", "INSTALL"])
def test_a_command_that_is_none_is_refused(pod: Pod, command: str) -> None:
    assert "CNI_COMMAND" in pod.call(command).failed(4)["msg"]


@pytest.mark.parametrize("command", NEEDS)
@pytest.mark.parametrize(
    ("name", "value"), [("CNI_CONTAINERID", "../etc"), ("CNI_IFNAME", ".."), ("CNI_IFNAME", "a" * 16)]
)
def test_names_that_could_lead_elsewhere_are_refused(pod: Pod, command: str, name: str, value: str) -> None:
    assert name in pod.call(command, environ={name: value}).failed(4)["msg"]


def test_a_namespace_that_is_not_there_is_refused(pod: Pod) -> None:
    assert "CNI_NETNS" in pod.call("ADD", environ={"CNI_NETNS": "/run/netns/never-was"}).failed(4)["msg"]


def test_variables_that_are_no_utf8_do_no_harm(pod: Pod) -> None:
    environ = {name.encode(): value.encode() for name, value in pod.environ("ADD").items()} | {b"CNI_ARGS": b"A=\xff"}
    done = subprocess.run(
        [pod.binary], env=environ, input=json.dumps(pod.conf()).encode(), capture_output=True, timeout=TIME_LIMIT
    )
    Reply(done).succeeded()


@pytest.mark.parametrize("locale", ["C", "POSIX", "de_DE.ISO-8859-1", "ja_JP.eucJP", "not a locale"])
def test_the_runtimes_locale_does_not_matter(pod: Pod, locale: str) -> None:
    with FakeHelper(pod.socket, NONE):
        reply = pod.call("ADD", environ={"LC_ALL": locale, "LANG": locale, "PYTHONUTF8": "0"}).succeeded()
    assert reply.json == result("1.0.0")


# ---- by hand ------------------------------------------------------------------------------------------------------


REFERENCE = Path("/usr/lib/cni/tuning")


def by_hand(binary: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """As from a shell: with a stdin that stays open and silent."""
    with subprocess.Popen(
        [binary, *arguments], env=environ, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        running.wait(TIME_LIMIT)
        assert running.stdout is not None and running.stderr is not None
        return subprocess.CompletedProcess((), running.returncode, running.stdout.read(), running.stderr.read())


@pytest.mark.parametrize("environ", [{}, {"PATH": "/bin"}, {"CNI_COMMAND": ""}, {"CNI_COMMAND": "", "CNI_ARGS": ""}])
@pytest.mark.parametrize("arguments", [[], ["dance"]])
def test_without_environment_it_says_what_it_is_as_reference_plugins_do(
    binary: Path, arguments: list[str], environ: dict[str, str]
) -> None:
    done = by_hand(binary, *arguments, **environ)
    assert (done.returncode, done.stdout) == (0, "")
    about, protocols = done.stderr.splitlines()
    assert about == f"CNI service-tunnel plugin v{__version__}"
    assert protocols == f"CNI protocol versions supported: {', '.join(VERSIONS)}"
    reference = by_hand(REFERENCE, *arguments, **environ)
    assert (reference.returncode, reference.stdout) == (0, "")
    assert reference.stderr.startswith("CNI tuning plugin v")
    assert reference.stderr.splitlines()[1].startswith("CNI protocol versions supported: 0.1.0, ")


@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_what_is_asked_for_by_an_option_goes_to_stdout(binary: Path, option: str) -> None:
    done = by_hand(binary, option)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"CNI service-tunnel plugin v{__version__}\nCNI protocol versions supported: 0.1.0, ")
    assert (f"CNI_COMMAND=VERSION {binary}" in done.stdout) == (option != "--version")


def test_a_runtime_that_forgets_the_verb_gets_an_error_and_a_person_still_the_explanation(binary: Path) -> None:
    done = by_hand(binary, CNI_IFNAME="eth0")
    assert done.returncode == 1
    assert done.stderr.startswith("CNI service-tunnel plugin v")
    error = json.loads(done.stdout)
    assert error["code"] == 4
    assert "CNI_COMMAND" in error["msg"] and "CNI_IFNAME" not in error["msg"]


def test_an_option_does_not_keep_a_verb_from_its_work(binary: Path) -> None:
    done = by_hand(binary, "--help", CNI_COMMAND="VERSION")
    assert json.loads(done.stdout)["supportedVersions"] == VERSIONS


# ---- the configuration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ANY_VERB)
@pytest.mark.parametrize("stdin", [b"", b"{", b"\xff\xfe\x00", b"[1]", b"null", b'{"a":' * 50_000, b"{} {}"])
def test_a_configuration_that_is_no_json_object_gives_code_6(pod: Pod, command: str, stdin: bytes) -> None:
    pod.call(command, stdin=stdin).failed(6)


@pytest.mark.parametrize("command", ANY_VERB)
@pytest.mark.parametrize("version", ["0.0.1", "2.0.0", "newest"])
def test_an_unknown_version_gives_code_1(pod: Pod, command: str, version: str) -> None:
    assert version in pod.call(command, pod.conf(version)).failed(1)["msg"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("command", "since"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")])
def test_a_verb_before_its_version_gives_code_1(pod: Pod, command: str, since: str, version: str) -> None:
    reply = pod.call(command, pod.conf(version, **{"cni.dev/valid-attachments": []}))
    if VERSIONS.index(version) < VERSIONS.index(since):
        error = reply.failed(1)
        assert command in error["msg"]
        assert error["cniVersion"] == version
    else:
        assert reply.status == 0 or reply.json["code"] != 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 1),
        ("helperSocket", 7),
        ("runDir", ["/run"]),
        ("stateDir", False),
        ("whenHelperIsAway", "perhaps"),
        ("helperWait", "10s"),
        ("exemptNamespaces", "kube-system"),
        ("tunnels", "198.51.100.7"),
        ("tunnels", [{"vips": "198.51.100.7"}]),
        ("tunnels", [{"vips": ["198.51.100.300"]}]),
        ("tunnels", [{"vips": ["198.51.100.7"], "mode": "pigeon"}]),
        ("log", []),
        ("prevResult", "yes"),
        ("runtimeConfig", {"io.kubernetes.cri.pod-annotations": ["a"]}),
    ],
)
def test_a_key_of_a_wrong_type_gives_code_7_and_is_named(pod: Pod, key: str, value: Any) -> None:
    error = pod.call("ADD", pod.conf("1.1.0", **{key: value})).failed(7)
    assert key in error["msg"]
    assert error["cniVersion"] == "1.1.0"
    assert pod.records() == []


def test_a_wrong_configuration_is_logged_where_it_says(pod: Pod) -> None:
    pod.call("ADD", pod.conf(helperWait="soon")).failed(7)
    (line,) = [json.loads(line) for line in (pod.folder / "log").read_text().splitlines()]
    assert (line["command"], line["pod"], line["outcome"], line["code"]) == ("ADD", "shop/web-1", "error", 7)


def test_an_annotation_with_one_bad_member_is_named_with_it(pod: Pod) -> None:
    annotations = {"cmd.nu/tunnel": "198.51.100.7,198.51.100.x"}
    conf = pod.conf(runtimeConfig={"io.kubernetes.cri.pod-annotations": annotations})
    message = pod.call("ADD", conf).failed(7)["msg"]
    assert "cmd.nu/tunnel" in message
    assert "198.51.100.x" in message


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_without_prevresult_there_is_no_chain(pod: Pod, command: str) -> None:
    assert "prevResult" in pod.call(command, pod.conf(prevResult=...)).failed(7)["msg"]


# ---- errors in variables are logged, too -----------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"CNI_IFNAME": "../x"}, {"CNI_CONTAINERID": None}, {"CNI_COMMAND": "FROB"}])
def test_a_wrong_variable_is_logged_where_the_configuration_says(pod: Pod, changes: dict[str, str | None]) -> None:
    error = pod.call("ADD", environ=changes).failed(4)
    (line,) = [json.loads(line) for line in (pod.folder / "log").read_text().splitlines()]
    assert (line["level"], line["outcome"], line["code"], line["msg"]) == ("error", "error", 4, error["msg"])
    assert line["pod"] == "shop/web-1"


@pytest.mark.parametrize("stdin", ["silent", "closed", "no JSON"])
def test_a_wrong_variable_waits_for_no_configuration(pod: Pod, stdin: str) -> None:
    read, write = os.pipe()
    try:
        if stdin == "no JSON":
            os.write(write, b"{")
        done = subprocess.run(
            ["sh", "-c", 'exec "$0" <&-', pod.binary] if stdin == "closed" else [pod.binary],
            stdin=read, env=pod.environ("FROB"), capture_output=True, timeout=20,
        )  # fmt: skip
    finally:
        os.close(read)
        os.close(write)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 4)
    assert not (pod.folder / "log").exists()
