"""Tests of the examples in Go and Node: lost answers, and a server that is not Sightline's."""

import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import duckdb
import grpc
import pytest

from examples.demo.relay import CUT, Relay
from models.plates import make_plate, to_jpeg
from sightline.cli.processes import ServiceProcess
from tests.compat.test_examples import camera, run
from tests.faults.answers import Answers, LostError, Stream
from tests.integration.auth.authority import Authority

__all__ = ["camera"]
_SERVICE = "sightline.inference.v1.InferenceService"


class Breaking:
    """A relay of `Infer` that loses the first answer together with the connection.

    Args:
        target: address of the service.

    Attributes:
        replayed: for each call, True if the service replayed a stored answer.
        relay: the network between the camera and this relay.
    """

    def __init__(self, target: str) -> None:
        self.replayed: list[bool] = []
        self._lock = threading.Lock()
        self._channel = grpc.insecure_channel(target)
        self._infer = self._channel.unary_unary(f"/{_SERVICE}/Infer", None, None)
        self._server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(self._pass_on)
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(_SERVICE, {"Infer": handler})]
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.relay = Relay(f"127.0.0.1:{port}")

    def _pass_on(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        brought = dict(context.invocation_metadata())
        key = (("idempotency-key", brought["idempotency-key"]),)
        answer, call = self._infer.with_call(request, metadata=key, timeout=30)
        trailing = tuple(call.trailing_metadata() or ())
        with self._lock:
            self.replayed.append(("idempotent-replayed", "true") in trailing)
            first = len(self.replayed) == 1
        if first:
            with self.relay.being(CUT):
                pass
        context.set_trailing_metadata(trailing)
        return bytes(answer)

    def close(self) -> None:
        self._server.stop(None).wait()
        self._channel.close()


@contextmanager
def breaking(target: str) -> Iterator[Breaking]:
    breaking = Breaking(target)
    try:
        with breaking.relay:
            yield breaking
    finally:
        breaking.close()


def test_a_retry_after_a_lost_connection_is_replayed(
    camera: list[str], inference: ServiceProcess, tmp_path: Path
) -> None:
    image = tmp_path / "part.jpg"
    image.write_bytes(to_jpeg(make_plate(2).image))
    with breaking(inference.address) as between:
        done = run(camera, "infer", "--target", between.relay.address, image)
    assert done.returncode == 0, done.stderr
    assert between.replayed == [False, True]
    assert "(a replay of the answer to an earlier try)" in done.stderr
    assert json.loads(done.stdout)["results"][0]["detections"]


@pytest.mark.parametrize("lost", ["all of it is committed", "a part of it is committed"])
def test_a_stream_whose_answer_is_lost_is_stored_once(
    camera: list[str], tmp_path: Path, lost: str
) -> None:
    database = tmp_path / "log.duckdb"
    tries: list[int] = []

    def fault(relay: Answers, stream: Stream) -> bytes:
        tries.append(len(stream))
        if len(tries) > 1:
            return relay.pass_on(stream)
        relay.pass_on(stream if lost.startswith("all") else stream[:3])
        raise LostError

    flags = ["--listen", "127.0.0.1:0", "--database", str(database)]
    with ServiceProcess("ingest_service", flags) as service, Answers(service.address) as relay:
        relay.fault = fault
        names = ["--device", "gate-lost", "--spool", uuid.uuid4()]
        done = run(camera, "log", "--target", relay.target, *names)
    assert done.returncode == 0, done.stderr
    assert len(tries) == 2
    assert json.loads(done.stdout)["committedThrough"] == "100"
    with duckdb.connect(str(database), read_only=True) as connection:
        stored = connection.execute("SELECT count(*), max(sequence) FROM predictions").fetchone()
        unbalanced = connection.execute("SELECT * FROM ledger WHERE NOT balanced").fetchall()
    assert stored == (100, 100)
    assert unbalanced == []


def test_only_a_service_of_the_trusted_authority_is_logged_to(
    camera: list[str], tmp_path: Path
) -> None:
    authority = Authority()
    certificate, key = authority.issue("server")
    for name, text in (
        ("ours.pem", authority.pem),
        ("theirs.pem", Authority().pem),
        ("cert.pem", certificate),
        ("key.pem", key),
    ):
        (tmp_path / name).write_bytes(text)
    flags = ["--listen", "127.0.0.1:0", "--database", str(tmp_path / "log.duckdb")]
    pair = [f"--tls-cert-file={tmp_path / 'cert.pem'}", f"--tls-key-file={tmp_path / 'key.pem'}"]
    with ServiceProcess("ingest_service", [*flags, *pair]) as service:
        to = ["log", "--target", service.address, "--ca-file"]
        done = run(camera, *to, tmp_path / "ours.pem")
        seconds = "1s" if str(camera[0]).endswith("go/bin/camera") else "1"
        refused = run(camera, *to, tmp_path / "theirs.pem", "--timeout", seconds)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accepted"] == "100"
    assert refused.returncode == 1
    assert "certificate" in refused.stderr
