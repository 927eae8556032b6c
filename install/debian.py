"""Debian's packages for what is built here: from the mirror that this machine's own apt uses, checked by apt.

No mirror is named in this project: machines have their own, often in a private network. Another release's packages
are looked for at the same one; `DEBIAN_MIRROR` in the environment says otherwise.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

APT = Path("/etc/apt")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class DebianError(RuntimeError):
    """Packages could not be had; the text says which and what apt said."""


def mirror() -> str:
    """The address of the mirror: of apt's entry for the release that is installed here.

    Raises DebianError where apt has none.
    """
    return os.environ.get("DEBIAN_MIRROR") or _entry(release())


def security_mirror() -> str:
    """The address of the mirror of security updates; raises DebianError where apt has none."""
    return os.environ.get("DEBIAN_SECURITY_MIRROR") or _entry(f"{release()}-security")


def architecture() -> str:
    """Debian's name of this machine's architecture, as `amd64`."""
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


def proxy_environment() -> dict[str, str]:
    """This process' environment with apt's proxy, which other programs' downloads would not know of."""
    environment = dict(os.environ)
    asked = subprocess.run(
        ["apt-config", "shell", "proxy", "Acquire::http::Proxy"], capture_output=True, text=True, check=False
    )
    _, _, value = asked.stdout.strip().partition("=")
    if value.strip("'\""):
        environment.setdefault("http_proxy", value.strip("'\""))
    environment["PATH"] = f"{environment.get('PATH', '')}:/usr/sbin:/sbin"
    return environment


def unpack_packages(release: str, packages: Sequence[str], folder: Path) -> None:
    """Unpacks `name=version` packages of a release into a folder; nothing is installed, no root is needed.

    Raises DebianError.
    """
    with _apt(release, architecture()) as (apt, state):
        _run([*apt, "download", *packages], state)
        for package in sorted(state.glob("*.deb")):
            _run(["dpkg-deb", "--extract", str(package), str(folder)], state)


def look_for_packages(release: str, packages: Sequence[str], processor: str) -> None:
    """Raises DebianError unless a release has these `name=version` packages for Debian's architecture `processor`."""
    with _apt(release, processor) as (apt, state):
        _run([*apt, "--print-uris", "download", *packages], state)


@contextmanager
def _apt(release: str, processor: str) -> Iterator[tuple[list[str], Path]]:
    """The beginning of an apt-get command that knows a release's packages, and the folder that it downloads to.

    apt gets a state of its own and checks signatures with the keys that this machine has. An old release's
    index may be past its date: it does not change any more. Raises DebianError.
    """
    sources = [
        f"deb [signed-by={KEYRING}] {mirror()} {release} main",
        f"deb [signed-by={KEYRING}] {security_mirror()} {release}-security main",
    ]
    with tempfile.TemporaryDirectory(prefix="debian-packages-") as name:
        state = Path(name)
        (state / "lists" / "partial").mkdir(parents=True)
        (state / "sources.list").write_text("\n".join(sources) + "\n")
        options = {
            "Dir::Etc::SourceList": state / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": state,
            "Dir::State::Lists": state / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": state,
            "Acquire::Check-Valid-Until": "false",
            "Acquire::Languages": "none",
            "APT::Architecture": processor,
            "APT::Architectures": processor,
            "APT::Sandbox::User": "",  # the folder is this user's own
        }
        apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
        _run([*apt, "update"], state)
        yield apt, state


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DebianError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr or done.stdout}")


def release() -> str:
    """The name of the release that is installed here, as `bookworm`."""
    lines = Path("/etc/os-release").read_text().splitlines()
    fields = {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}
    return fields.get("VERSION_CODENAME", "")


def _entry(suite: str) -> str:
    for uri, suites in _entries():
        if suite in suites:
            return uri
    raise DebianError(
        f"no entry for {suite} in {APT}/sources.list(.d): which mirror to use? "
        "Say so by DEBIAN_MIRROR and DEBIAN_SECURITY_MIRROR"
    )


def _entries() -> Iterator[tuple[str, list[str]]]:
    """(URI, suites) of every binary entry of apt's sources, in both formats."""
    for path in sorted(APT.glob("sources.list.d/*.sources")):
        for paragraph in path.read_text().split("\n\n"):
            pairs = (line.split(":", 1) for line in paragraph.splitlines() if ":" in line and line[0] not in " #")
            fields = {name.strip().lower(): value.strip() for name, value in pairs}
            if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes") != "no":
                for uri in fields.get("uris", "").split():
                    yield uri, fields.get("suites", "").split()
    for path in [APT / "sources.list", *sorted(APT.glob("sources.list.d/*.list"))]:
        for line in path.read_text().splitlines() if path.exists() else ():
            words = line.split("#")[0].split("]")[-1].replace("deb ", "", 1).split()
            if line.startswith("deb ") and len(words) >= 2:
                yield words[0], [words[1]]
