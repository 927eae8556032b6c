"""`python -m conformance.cluster [--bare]`: a cluster to look around in; it stands until Enter or Ctrl-C."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from pathlib import Path

from conformance.cluster.stage import Stage


def write(path: Path, *command: str) -> None:
    """A command that runs its arguments by that one."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)


def main() -> None:
    with Stage(lambda text: print(text, flush=True)) as stage:
        if "--bare" not in sys.argv[1:]:
            stage.install()
        folder = stage.logs
        hosts = [stage.machines.client, stage.machines.router, *(node.host for node in stage.machines.nodes.values())]
        for host in hosts:
            write(folder / host.name, *host.command())
        write(folder / "kubectl", *stage.control.host.command(*stage.control.kubectl_command()))
        print(
            f"{folder}/kubectl get pods -A; {folder}/node1 ip route; logs are in {folder}. Enter ends it.", flush=True
        )
        with suppress(KeyboardInterrupt):
            sys.stdin.readline()


if __name__ == "__main__":
    main()
