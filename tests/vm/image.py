"""The folders that the virtual machine is made of: built once from Debian's packages, then kept in a cache.

Two root folders of Debian 13: `guest`, what the machine runs, with a stock kernel and a Python environment of the
project's pins; and `host`, which holds QEMU and virtiofsd, because QEMU 7.2 of Debian 12 cannot boot this kernel
without hardware support. Both are plain folders, no disk image and no initial RAM disk: the kernel has virtiofs
built in.

They depend on packages, pins, console scripts and this very recipe.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from install import debian
from install.cache import Say, made_once

PROJECT = Path(__file__).resolve().parents[2]
RELEASE = "trixie"
GUEST_PYTHON = "3.13"  # of RELEASE
GUEST_PACKAGES = (
    "ca-certificates containernetworking-plugins conntrack iperf3 ipset iproute2 iptables iputils-ping kmod "
    "linux-image-cloud-amd64 initramfs-tools-core netcat-openbsd nftables procps python3 python3-venv tcpdump"
).split()
HOST_PACKAGES = ["qemu-system-x86", "virtiofsd"]


class ImageError(Exception):
    """The image could not be built; the message names the step and has the end of its log."""


def requirements() -> list[str]:
    """The pins that the guest's Python gets: what the project and its tests import, not what builds or lints."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return sorted([*project["dependencies"], *project["optional-dependencies"]["test"]])


def scripts() -> dict[str, str]:
    """The console scripts of the project: name to `module:function`."""
    declared: dict[str, str] = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    return declared


def ensure(say: Say = print) -> Path:
    """The folder of the image for the present pins (`guest`, `host`, `vmlinuz` in it), built where it is missing."""
    depends_on = [
        RELEASE,
        *GUEST_PACKAGES,
        *HOST_PACKAGES,
        *requirements(),
        *(f"{name}={target}" for name, target in sorted(scripts().items())),
        (PROJECT / "install" / "constraints.txt").read_text(),
        Path(__file__).read_text(),
    ]

    def make(folder: Path) -> Path:
        _build(folder, say)
        return folder

    return made_once("vm", depends_on, make, "building the virtual machine's image (about two minutes)", say)


def _build(image: Path, say: Say) -> None:
    mirror, environment = debian.mirror(), debian.proxy_environment()
    for folder, packages in (("guest", GUEST_PACKAGES), ("host", HOST_PACKAGES)):
        say(f"  debootstrap {RELEASE}: {folder} ({', '.join(packages)})")
        include = f"--include={','.join(packages)}"
        _step(
            image, folder, ["debootstrap", "--variant=minbase", include, RELEASE, image / folder, mirror], environment
        )
    guest = image / "guest"
    (version,) = [path.name for path in (guest / "lib" / "modules").iterdir()]
    _step(image, "depmod", ["chroot", guest, "depmod", version])
    shutil.copy(guest / "boot" / f"vmlinuz-{version}", image / "vmlinuz")
    (guest / "project").mkdir()
    (guest / "etc" / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")

    say(f"  Python environment: {', '.join(requirements())}")
    _python_environment(image, guest)
    for folder in ("guest", "host"):
        shutil.rmtree(image / folder / "var" / "cache" / "apt" / "archives", ignore_errors=True)


def _python_environment(image: Path, guest: Path) -> None:
    """Wheels are fetched by this machine's pip, with its own settings, and installed without network in the guest."""
    wheels = guest / "wheels"
    wheels.mkdir()
    constraints = PROJECT / "install" / "constraints.txt"
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--implementation=cp"]
    fetch += [f"--python-version={GUEST_PYTHON}", f"--constraint={constraints}", f"--dest={wheels}"]
    _step(image, "pip-download", [*fetch, *requirements()])
    _step(image, "venv", ["chroot", guest, "python3", "-m", "venv", "/opt/venv"])
    install = ["/opt/venv/bin/pip", "install", "--quiet", "--no-index", "--find-links=/wheels"]
    _step(image, "pip-install", ["chroot", guest, *install, *requirements()])
    for name, target in scripts().items():
        module, function = target.split(":")
        script = guest / "opt" / "venv" / "bin" / name
        script.write_text(
            f"#!/opt/venv/bin/python\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        )
        script.chmod(0o755)
    shutil.rmtree(wheels)


def _step(image: Path, name: str, command: list[str | Path], environment: dict[str, str] | None = None) -> None:
    """Run one command of the build, its output in `<name>.log`; the end of it in the error when it fails."""
    log = image / f"{name}.log"
    with log.open("w") as output:
        ended = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
    if ended.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ImageError(f"{name}: {' '.join(map(str, command))} ended with {ended.returncode}:\n{last}")
