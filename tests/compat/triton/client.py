"""Typical calls of tritonclient, for an interpreter that has it; prints one JSON object.

    python client.py ADDRESS FOLDER KEY

FOLDER holds `tensor.npy` and `part.jpg`; the answers to them are written there. The server has the
models `plates` and `slow`, and accepts the API key KEY.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException


def tensor(values: Any, datatype: str, name: str = "images") -> Any:
    tensor_input = triton.InferInput(name, list(values.shape), datatype)
    tensor_input.set_data_from_numpy(values)
    return tensor_input


def refusal(call: Callable[[], object]) -> list[str]:
    """Return the code and the message of the error that a call fails with."""
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return ["OK", ""]


def health(client: Any, headers: dict[str, str]) -> dict[str, object]:
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model": client.is_model_ready("plates", headers=headers),
        "version": client.is_model_ready("plates", "1", headers=headers),
        "nobody": client.is_model_ready("nobody", headers=headers),
    }


def descriptions(client: Any, headers: dict[str, str]) -> dict[str, object]:
    return {
        "server": client.get_server_metadata(headers=headers, as_json=True),
        "metadata": client.get_model_metadata("plates", headers=headers, as_json=True),
        "config": client.get_model_config("plates", headers=headers, as_json=True),
    }


def answers(client: Any, folder: Path, headers: dict[str, str]) -> dict[str, object]:
    values = np.load(folder / "tensor.npy")
    result = client.infer(
        "plates",
        [tensor(values, "FP32")],
        outputs=[triton.InferRequestedOutput("output0")],
        request_id="seven",
        timeout=30_000_000,
        priority=1,
        headers=headers,
    )
    np.save(folder / "of_tensor.npy", result.as_numpy("output0"))
    response = result.get_response()
    jpeg = (folder / "part.jpg").read_bytes()
    pictures = np.array([jpeg, jpeg], dtype=np.object_)
    of_pictures = client.infer("plates", [tensor(pictures, "BYTES", "image")], headers=headers)
    np.save(folder / "of_pictures.npy", of_pictures.as_numpy("output0"))
    return {
        "model": [response.model_name, response.model_version, response.id],
        "compressed": bool(
            np.array_equal(
                client.infer(
                    "plates",
                    [tensor(values, "FP32")],
                    compression_algorithm="gzip",
                    headers=headers,
                ).as_numpy("output0"),
                result.as_numpy("output0"),
            )
        ),
    }


def refusals(client: Any, folder: Path, headers: dict[str, str]) -> dict[str, list[str]]:
    values = np.load(folder / "tensor.npy")
    good = [tensor(values, "FP32")]

    def infer(model: str, inputs: Any, **more: Any) -> list[str]:
        return refusal(lambda: client.infer(model, inputs, **{"headers": headers, **more}))

    return {
        "model": infer("nobody", good),
        "version": infer("plates", good, model_version="9"),
        "shape": infer("plates", [tensor(values[:, :, 1:], "FP32")]),
        "datatype": infer("plates", [tensor(values.astype(np.float64), "FP64")]),
        "input": infer("plates", [tensor(values, "FP32", "pixels")]),
        "output": infer("plates", good, outputs=[triton.InferRequestedOutput("boxes")]),
        "picture": infer("plates", [tensor(np.array([b"<html>"], np.object_), "BYTES")]),
        "sequence": infer("plates", good, sequence_id=7),
        "metadata": refusal(lambda: client.get_model_metadata("nobody", headers=headers)),
        "config": refusal(lambda: client.get_model_config("nobody", headers=headers)),
        "client_timeout": infer("slow", good, client_timeout=0.02),
        "timeout": infer("slow", good, timeout=20_000),
        "no_key": infer("plates", good, headers={}),
        "bad_key": infer("plates", good, headers={"authorization": "Bearer slk_" + "0" * 56}),
    }


async def in_an_event_loop(address: str, folder: Path, headers: dict[str, str]) -> dict[str, int]:
    """Return the number of concurrent calls whose answer equals that of a single call."""
    values = np.load(folder / "tensor.npy")
    async with triton_aio.InferenceServerClient(address) as client:
        results = await asyncio.gather(
            *(client.infer("plates", [tensor(values, "FP32")], headers=headers) for _ in range(8))
        )
        statistics = await client.get_inference_statistics("plates", headers=headers, as_json=True)
    expected = np.load(folder / "of_tensor.npy")
    return {
        "equal": sum(np.array_equal(result.as_numpy("output0"), expected) for result in results),
        "counted": int(statistics["model_stats"][0]["inference_count"]),
    }


def main(address: str, folder: Path, key: str) -> dict[str, object]:
    headers = {"authorization": f"Bearer {key}"}
    with triton.InferenceServerClient(address) as client:
        return {
            "health": health(client, headers),
            "descriptions": descriptions(client, headers),
            "answers": answers(client, folder, headers),
            "refusals": refusals(client, folder, headers),
            "loop": asyncio.run(in_an_event_loop(address, folder, headers)),
        }


if __name__ == "__main__":
    json.dump(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]), sys.stdout)
