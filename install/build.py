"""Builds the frozen plugin: `python -m install.build FOLDER` (what `make plugin` runs).

The same sources give the same bytes and modes, wherever and whenever they are built.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from install.debian import DebianError
from install.interpreter import InterpreterError, interpreter

SOURCE = Path(__file__).resolve().parents[1]
SPEC = SOURCE / "install" / "service-tunnel.spec"


def build(folder: Path) -> None:
    """Freezes cni_plugin into `folder`, which is there whole or as it was before.

    Raises InterpreterError, DebianError and OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".plugin-") as name:
        work = Path(name).resolve()
        made = work / "dist" / "service-tunnel"
        interpreter().run(
            [
                "-m",
                "PyInstaller",
                "--log-level=WARN",
                "--noconfirm",
                f"--distpath={made.parent}",
                f"--workpath={work}",
                SPEC,
            ],
            PLUGIN_SOURCE=str(SOURCE),
            PLUGIN_WORK=str(work),
            PYTHONHASHSEED="0",  # the order of sets in the marshalled code
            SOURCE_DATE_EPOCH="0",
            PYINSTALLER_CONFIG_DIR=str(work),  # nothing is kept in, or taken from, the user's folder
        )
        _open_to_all(made)
        if folder.exists():
            folder.rename(work / "previous")
        made.rename(folder)


def _open_to_all(folder: Path) -> None:
    """The same modes whatever the builder's umask is: anyone may run a plugin to ask for its version."""
    for path in (folder, *folder.rglob("*")):
        runs = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if runs else 0o644)


def main() -> int:
    if len(sys.argv) != 2:
        print(f"usage: python -m {__spec__.name} FOLDER", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    print(f"plugin: freezing cni_plugin into {folder}", flush=True)
    try:
        build(folder)
    except (DebianError, InterpreterError, OSError) as error:
        print(f"plugin: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
