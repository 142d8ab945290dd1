"""A client of a served app: sends as many requests as a line of standard input says, over one connection.

Arguments: the port and the target of the request.
"""

from __future__ import annotations

import http.client
import sys

TIMEOUT = 60.0
"""Seconds for one response; a server under callgrind is fifty times as slow."""


def main() -> None:
    """Run the command line."""
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=TIMEOUT)
    for line in sys.stdin:
        for _ in range(int(line)):
            connection.request("GET", sys.argv[2])
            connection.getresponse().read()
        sys.stdout.write("sent\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
