"""`python -m install.image root|programs FOLDER`: see the package."""

from __future__ import annotations

import sys
from pathlib import Path

from install.debian import DebianError
from install.image import ImageError, archive, programs, root


def main() -> int:
    if len(sys.argv) != 3 or sys.argv[1] not in ("root", "programs"):
        print("usage: python -m install.image root|programs FOLDER", file=sys.stderr)
        return 2
    folder = Path(sys.argv[2])
    try:
        if sys.argv[1] == "programs":
            programs(folder)
            return 0
        root(folder)
        made = archive(folder)
    except (DebianError, ImageError, OSError) as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    print(f"image: {made}, {made.stat().st_size / 1e6:.0f} MB; its content is in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
