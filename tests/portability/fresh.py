"""A machine with Debian 12, git, make and Python alone: a root folder in which `install/setup.sh` did its work.

It is made once per state of what setup.sh reads, and whoever uses it writes to a layer above that ends with the call.
Packages come from where this machine has them: apt's mirror, pip's own configuration.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from install import debian
from install.cache import made_once
from tests.portability import roots
from tests.vm.image import PROJECT

RELEASE = "bookworm"
GIVEN = ("git", "make", "python3")
CLONE = "/root/kube-service-tunnel"
SETUP_READS = ("install/setup.sh", "install/constraints.txt")
CERTIFICATES = "usr/local/share/ca-certificates"
"""What this machine's owner trusts besides Debian's; the other one has to reach the same registries."""

PLACE = r"""
set -e
if [ -n "$LAYER" ]; then
    mount -t tmpfs tmpfs "$LAYER"
    mkdir "$LAYER/upper" "$LAYER/work" "$LAYER/root"
    mount -t overlay -o "lowerdir=$ROOT,upperdir=$LAYER/upper,workdir=$LAYER/work" overlay "$LAYER/root"
    ROOT=$LAYER/root
fi
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
cat /etc/resolv.conf >"$ROOT/etc/resolv.conf"
if [ -e /etc/pip.conf ]; then : >"$ROOT/etc/pip.conf"; mount --bind /etc/pip.conf "$ROOT/etc/pip.conf"; fi
if [ -n "$TREE" ]; then
    mkdir -p "$ROOT$CLONE"
    find "$ROOT$CLONE" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
    cp -a "$TREE/." "$ROOT$CLONE"
fi
exec chroot "$ROOT" /bin/bash -c "$COMMAND"
"""


class SetupFailed(Exception):
    """The machine could not be set up; the message has the end of what was said."""


def tree(folder: Path) -> Path:
    """What a clone of this checkout would have, with what is not committed yet, in an empty folder."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=PROJECT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (PROJECT / name).exists():  # what was deleted is still in the index
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name)
    return folder


def run(root: Path, command: str, *, tree: Path | None = None, layer: Path | None = None) -> tuple[int, str]:
    """Exit status and output of a shell command there, in namespaces of its own for mounts and processes.

    `tree` is put to CLONE before. `layer`: an empty folder; what is written goes there, and away at the end.
    """
    environment = {
        **debian.proxy_environment(),
        "HOME": "/root",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "ROOT": str(root),
        "LAYER": str(layer or ""),
        "TREE": str(tree or ""),
        "CLONE": CLONE,
        "COMMAND": command,
    }
    for inherited in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # this may itself run below a make
        environment.pop(inherited, None)
    spaces = ["--mount", "--propagation=private", "--pid", "--fork", "--kill-child=KILL"]
    done = subprocess.run(
        ["setpriv", "--pdeathsig=KILL", "unshare", *spaces, "sh", "-c", PLACE],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def machine() -> Path:
    """The root folder after `install/setup.sh` had run in CLONE: some three minutes and the network, once.

    Raises SetupFailed, and what `roots.ensure` raises.
    """
    base = roots.ensure(RELEASE)
    pins = (PROJECT / "pyproject.toml").read_text().partition("[tool.ruff]")[0]  # as setup.sh sees it
    texts = [(PROJECT / name).read_text() for name in SETUP_READS]

    def make(folder: Path) -> Path:
        root, files = folder / "root", folder / "tree"
        subprocess.run(["cp", "-a", str(base), str(root)], check=True)
        files.mkdir()
        _give_what_a_machine_has(root)
        for command, files_there in (
            (f"apt-get update -q && apt-get install -q -y --no-install-recommends {' '.join(GIVEN)}", None),
            (f"cd {CLONE} && install/setup.sh && apt-get clean", tree(files)),
        ):
            code, output = run(root, command, tree=files_there)
            if code:
                raise SetupFailed(f"{command} ended with {code}:\n{output[-4000:]}")
        return root

    what = f"setting up a fresh Debian {RELEASE} (three minutes)"
    return made_once("roots/fresh", [debian.architecture(), *texts, pins, Path(__file__).read_text()], make, what)


def _give_what_a_machine_has(root: Path) -> None:
    for folder in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    entries = [
        f"deb {debian.mirror()} {RELEASE} main",
        f"deb {debian.security_mirror()} {RELEASE}-security main",
    ]
    (root / "etc/apt/sources.list").write_text("\n".join(entries) + "\n")
    if Path("/", CERTIFICATES).is_dir():
        shutil.copytree(Path("/", CERTIFICATES), root / CERTIFICATES, dirs_exist_ok=True)
