"""`python -m tests.demo.ask VIP`: one question to a VIP, and who answers. Run in the client's namespace."""

from __future__ import annotations

import argparse
import sys

from tests.testbed import traffic
from tests.testbed.namespaces import TestbedError


def main() -> int:
    """Prints the pod that answers and the client that it sees; exit status 1 without an answer."""
    parser = argparse.ArgumentParser(prog="ask", description="Ask a VIP who answers it, and whom the pod sees.")
    parser.add_argument("vip")
    parser.add_argument("--port", type=int, default=8080, help="%(default)s by default")
    parser.add_argument("--udp", action="store_true", help="by UDP instead of TCP")
    parser.add_argument("--source-port", type=int, default=0, help="the client's port; by default any")
    chosen = parser.parse_args()
    ask = traffic.ask_udp if chosen.udp else traffic.ask_tcp
    try:
        answer = ask(chosen.vip, chosen.port, source_port=chosen.source_port)
    except (TestbedError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{answer.name} answers, and sees {answer.client} port {answer.client_port} as the client")
    return 0


if __name__ == "__main__":
    sys.exit(main())
