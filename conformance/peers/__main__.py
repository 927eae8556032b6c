"""`python -m conformance.peers [GROUP…]`: builds the programs where they are missing, and prints their folders."""

from __future__ import annotations

import sys

from conformance.peers import GROUPS, PeersError, ensure


def _tell(text: str) -> None:
    print(f"peers: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        for group in sys.argv[1:] or GROUPS:
            print(ensure(group, _tell))
    except PeersError as error:
        raise SystemExit(f"peers: {error}") from None
