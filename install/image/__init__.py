"""The image's content, built without a container engine: `python -m install.image root|programs FOLDER`.

    programs   what is ours: packages with what they depend on, commands, the frozen plugin
    root       that on top of Debian's packages, as a folder, and beside it as a compressed archive

Debian's release is this machine's own, whose Python the dependencies with C parts are for. The Containerfile uses
`programs` and the same list of packages.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from install import debian
from install.cache import Say, made_once

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = Path(__file__).with_name("packages")
PLUGIN = PROJECT / "dist" / "service-tunnel"
PLUGIN_IN_IMAGE = "opt/service-tunnel/plugin"
OURS = ("cni_plugin", "node_helper", "install/__init__.py", "install/node")
COMMANDS = {"service-tunnel-helper": "node_helper.cli", "service-tunnel-install": "install.node.cli"}
_COMMAND = """#!/usr/bin/python3 -I
import sys

sys.dont_write_bytecode = True  # the root is read-only
from {module} import main

sys.exit(main())
"""
_DROPPED = (
    "var/cache/apt", "var/lib/apt/lists", "var/log/*", "usr/share/doc", "usr/share/man", "usr/share/locale",
    "usr/share/info", "usr/share/zoneinfo", "usr/share/lintian", "usr/share/bash-completion", "dev/*",
)  # fmt: skip
"""What takes room and nothing in the image reads."""


class ImageError(Exception):
    """The image could not be made; the text has the end of what the step said."""


def packages() -> list[str]:
    """The Debian packages that the programs need."""
    return PACKAGES.read_text().split()


def dependencies() -> list[str]:
    """The pinned Python packages that the programs need."""
    found: list[str] = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    return found


def programs(folder: Path) -> None:
    """Puts what is ours, and the Python packages that it needs, below `folder`; raises ImageError, OSError."""
    if not (PLUGIN / "service-tunnel").is_file():
        raise ImageError(f"there is no plugin in {PLUGIN}: `make plugin` builds it")
    site = _site(folder)
    if not (site / "click").is_dir():
        _put_dependencies(site)
    for name in OURS:
        _copy(PROJECT / name, site / name)
    _copy(PLUGIN, folder / PLUGIN_IN_IMAGE)
    for name, module in COMMANDS.items():
        command = folder / "usr" / "local" / "bin" / name
        command.parent.mkdir(parents=True, exist_ok=True)
        command.write_text(_COMMAND.format(module=module))
        command.chmod(0o755)


def _site(folder: Path) -> Path:
    """Where this machine's Python, which is Debian's, looks for packages that are not Debian's."""
    return folder / "usr" / "local" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "dist-packages"


def _put_dependencies(site: Path) -> None:
    site.mkdir(parents=True, exist_ok=True)
    _run(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
        f"--constraint={PROJECT / 'install' / 'constraints.txt'}", f"--target={site}", *dependencies(),
    )  # fmt: skip
    shutil.rmtree(site / "bin", ignore_errors=True)


def root(folder: Path, say: Say = print) -> None:
    """Makes `folder` the image's root anew; raises ImageError, DebianError, OSError."""
    base = _base(say)
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run("cp", "-a", str(base), str(folder))
    programs(folder)
    # Compiled once, here: at run time there is nowhere to put it.
    _run("chroot", str(folder), "/usr/bin/python3", "-m", "compileall", "-q", "/usr/local/lib")


def archive(folder: Path) -> Path:
    """The compressed archive beside the folder; its files are root's, whoever made them."""
    path = folder.with_name(f"{folder.name}.tar.gz")
    options = ("--numeric-owner", "--sort=name", "--mtime=@0", "--gzip")
    _run("tar", *options, "-C", str(folder), "-cf", str(path), ".")
    return path


def _base(say: Say) -> Path:
    """Debian's part with the Python packages that others wrote, made once for the present pins."""
    release = debian.release()

    def make(folder: Path) -> Path:
        made = folder / "root"
        _run(
            "debootstrap", "--variant=minbase", f"--include={','.join(packages())}", release, str(made),
            debian.mirror(), environment=debian.proxy_environment(),
        )  # fmt: skip
        for pattern in _DROPPED:
            for path in made.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        _put_dependencies(_site(made))
        return made

    constraints = (PROJECT / "install" / "constraints.txt").read_text()
    pins = [release, debian.architecture(), *packages(), *dependencies(), constraints, Path(__file__).read_text()]
    return made_once("image", pins, make, "making the image's Debian part (two minutes)", say)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _run(*command: str, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except FileNotFoundError:
        raise ImageError(f"{command[0]} is not installed") from None
    if done.returncode:
        shown = re.sub(r"(.{200}).*", r"\1…", " ".join(command))
        raise ImageError(f"{shown} ended with {done.returncode}:\n{done.stdout[-2000:]}")
