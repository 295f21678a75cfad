"""The cost of the setting `decoder` of the ingest service: `python -m bench.decoders`.

Each decoder decodes the same messages in this process, and then runs in a service that devices
stream to, as in `bench.ingest`. Rounds of the decoders alternate; the figures are medians.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import uvloop

from bench.ingest import GROUP_BYTES, STREAM, payloads, rounds, send, service
from ingest_service.receive.decode import Decoder
from ingest_service.receive.protobuf_decoder import ProtobufDecoder
from ingest_service.receive.ptars_decoder import PtarsDecoder

DECODERS: dict[str, Decoder] = {"ptars": PtarsDecoder(), "protobuf": ProtobufDecoder()}
BATCH = 256


def decode(name: str, messages: Sequence[bytes]) -> float:
    """Return the predictions per second that a decoder decodes in one group."""
    began = time.perf_counter()
    decoded = DECODERS[name].decode(messages)
    elapsed = time.perf_counter() - began
    return len(decoded.batch.column("predictions").values) / elapsed


def commit(name: str, folder: Path, streams: Sequence[Sequence[bytes]], seconds: float) -> float:
    """Return the predictions per second that a service with a decoder commits."""
    with service(folder, "--decoder", name) as running:
        return uvloop.run(send(running.address, streams, seconds))


def main() -> None:
    """Print the figures as one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=10.0, help="of one measurement")
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    streams = [payloads(1 + at * STREAM, STREAM, BATCH) for at in range(5)]
    group = [message for messages in streams for message in messages]
    group = group[: GROUP_BYTES // len(group[0])]
    ptars, protobuf = rounds(20, *(partial(decode, name, group) for name in DECODERS))
    with tempfile.TemporaryDirectory() as folder:
        measures = [
            partial(commit, name, Path(folder), streams, options.seconds) for name in DECODERS
        ]
        with_ptars, with_protobuf = rounds(options.rounds, *measures)
    figures = {
        "bench": "decoders",
        "ptars_decoded_per_s": round(ptars),
        "protobuf_decoded_per_s": round(protobuf),
        "ptars_committed_per_s": round(with_ptars),
        "protobuf_committed_per_s": round(with_protobuf),
        "ratio_committed": round(with_protobuf / with_ptars, 2),
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
