"""What clients do to a VIP while something happens there, and what became of each connection and request.

The program: `python -m tests.faults.client LOAD VIP PORT COUNT RATE [SOURCE …]` prints `ready` when COUNT connections,
or flows, are open and answered. The line `check` on standard input has idle connections ask once and is answered by
`checked`; `finish` makes it come to an end: each connection has to answer once more, and one line of JSON tells what
was seen. `tests.faults.loads` drives it.
"""

from __future__ import annotations

import json
import selectors
import sys
import time

from tests.faults.datagrams import Datagrams, Fragments
from tests.faults.flows import LAST_ANSWERS, PAUSE, Load
from tests.faults.streams import Newcomers, Streams, Transfers

LOADS: dict[str, type[Load]] = {
    "streams": Streams,
    "newcomers": Newcomers,
    "transfers": Transfers,
    "datagrams": Datagrams,
    "fragments": Fragments,
}


def run(load: Load) -> dict[str, object]:
    """Goes on until it is told to finish, then until the last answers have come."""
    load.start()
    print("ready", flush=True)
    load.events.register(sys.stdin, selectors.EVENT_READ, None)
    deadline = float("inf")
    checking = False
    before = time.monotonic()
    while True:
        now = time.monotonic()
        due = load.tick(now)
        if load.ending and (not load.waiting() or now > deadline):
            return load.result(now)
        if checking and load.checked(now):
            checking = False
            print("checked", flush=True)
        wait = max(0.0, min(due, 0.1 if load.ending or checking else 1.0))
        ready = load.events.select(wait)
        heard = time.monotonic()
        if heard > before + wait + PAUSE:
            load.pauses.append((before, heard))
        before = heard
        for key, events in ready:
            if key.data is not None:
                load.hear(key.data, events, time.monotonic())
                continue
            # Only one line is ever under way: what is buffered needs no second look.
            told = sys.stdin.readline()
            if told == "check\n":
                load.check(time.monotonic())
                checking = True
            elif told == "finish\n":
                deadline = time.monotonic() + LAST_ANSWERS
                load.finish(time.monotonic())
            else:
                raise SystemExit("nobody listens any more")


def main() -> None:
    name, vip, port, count, rate, *sources = sys.argv[1:]
    print(json.dumps(run(LOADS[name](vip, int(port), int(count), float(rate), sources))), flush=True)


if __name__ == "__main__":
    main()
