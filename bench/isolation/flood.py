"""One flood in its own process: `python -m bench.isolation.flood`.

It runs with the lowest priority, because a real flood comes from another machine: the benchmark
measures the server's response, and not the competition for this machine's cores.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import uvloop

from bench.isolation import grpc_floods, raw_floods
from bench.isolation.target import INFERENCE, INGEST, SERVICES, Target

Flood = Callable[[Target], Coroutine[None, None, int]]
_BOTH: dict[str, Flood] = {
    "headers_only": raw_floods.headers_only,
    "half_messages": raw_floods.half_messages,
    "long_deadlines": grpc_floods.long_deadlines,
    "unknown_methods": raw_floods.unknown_methods,
    "rapid_reset": raw_floods.rapid_reset,
}
FLOODS: dict[str, dict[str, Flood]] = {
    INGEST: {**_BOTH, "large_messages": grpc_floods.large_messages},
    INFERENCE: {
        **_BOTH,
        "large_pictures": grpc_floods.large_pictures,
        "long_runs": grpc_floods.long_runs,
        "many_batches": grpc_floods.many_batches,
    },
}
"""The floods of each service by their names."""


def main() -> None:
    """Flood for this many seconds and print the number of calls."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("service", choices=SERVICES)
    arguments.add_argument("flood")
    arguments.add_argument("address", help="host:port on this machine")
    arguments.add_argument("key_file", type=Path, help="with the API key of the flood")
    arguments.add_argument("--seconds", type=float, default=10.0)
    options = arguments.parse_args()
    os.nice(19)
    key = options.key_file.read_text().strip()
    aim = Target(options.service, options.address, key, time.monotonic() + options.seconds)
    print(json.dumps({"flood": options.flood, "event": "begun"}), flush=True)
    calls: int = uvloop.run(FLOODS[aim.service][options.flood](aim))
    print(json.dumps({"flood": options.flood, "calls": calls}), flush=True)


if __name__ == "__main__":
    main()
