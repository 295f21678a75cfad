"""A bare grpc.aio server that answers `Infer`: `python -m bench.infer.bare_grpc --model FILE`.

The same messages and the same work, in a pool of two threads, and nothing else: no callers, no
limits, no checks, no keys, no metrics, and no deadlines beyond gRPC's own.
"""

import argparse
import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import uvloop
from sightline.inference.v1 import inference_service_pb2

from bench.infer.work import InferenceWork, response

SERVICE = "sightline.inference.v1.InferenceService"
MESSAGE_BYTES = 32 * 1024 * 1024
WORKERS = 2


def handlers(work: InferenceWork) -> "grpc.GenericRpcHandler[Any, Any]":
    """Return `Infer`, which answers for the first image of a request."""
    pool = ThreadPoolExecutor(WORKERS)

    async def infer(
        request: inference_service_pb2.InferRequest, _: "grpc.aio.ServicerContext[Any, Any]"
    ) -> inference_service_pb2.InferResponse:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, response, work, request.images[0].data)

    method = grpc.unary_unary_rpc_method_handler(
        infer,
        request_deserializer=inference_service_pb2.InferRequest.FromString,
        response_serializer=inference_service_pb2.InferResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"Infer": method})


async def serve(model: Path) -> None:
    """Serve on a free port of this machine until the process is ended."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MESSAGE_BYTES)])
    server.add_generic_rpc_handlers([handlers(InferenceWork(model))])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"ready": True, "address": f"127.0.0.1:{port}"}), flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Serve the model."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", type=Path, required=True)
    uvloop.run(serve(arguments.parse_args().model))


if __name__ == "__main__":
    main()
