"""The Makefile's face: `make` alone says what there is, with what every Debian has, and no target is a file's name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.vm.image import PROJECT

MAKEFILE = (PROJECT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE)


def test_every_target_is_phony() -> None:
    phony = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert sorted(" ".join(phony).split()) == sorted(TARGETS)


def test_make_alone_says_what_there_is_with_the_tools_of_a_bare_debian(tmp_path: Path) -> None:
    for tool in ("awk", "find", "sed", "sh"):  # mawk, findutils, sed and dash are essential packages
        (tmp_path / tool).symlink_to(Path("/usr/bin", tool))
    done = subprocess.run(
        ["/usr/bin/make"], cwd=PROJECT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert re.findall(r"^  make ([a-z]+) +\S", done.stdout, re.MULTILINE) == TARGETS
