"""Writes the manifests that are one file for a user and several here: `python -m install.kubernetes`.

`service-tunnel.yaml` is the files of `base`, as its kustomization lists them; `bird.yaml` has the configuration of
`install/bird`. A test holds them equal.
"""

from __future__ import annotations

from pathlib import Path

import yaml

HERE = Path(__file__).parent
BIRD = HERE.parent / "bird"
_HEAD = "# Made by `python -m install.kubernetes` from install/{}; change it there.\n"


def everything() -> str:
    """The text of service-tunnel.yaml."""
    listed = yaml.safe_load((HERE / "base" / "kustomization.yaml").read_text())["resources"]
    return _HEAD.format("kubernetes/base") + "---\n".join((HERE / "base" / name).read_text() for name in listed)


def bird() -> str:
    """The text of bird.yaml."""
    files = {name: (BIRD / name).read_text() for name in ("bird.conf", "service-tunnel.conf")}
    indented = "".join(
        f"  {name}: |\n" + "".join(f"    {line}\n" if line else "\n" for line in text.splitlines())
        for name, text in files.items()
    )
    return _HEAD.format("bird") + (BIRD / "daemonset.yaml").read_text().replace("  # files\n", indented)


WRITTEN = {"service-tunnel.yaml": everything, "bird.yaml": bird}
