"""Callers that retry requests under idempotency keys until they are answered, and their answers."""

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import DecodeError
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from servicekit.errors import SightlineError, from_rpc_error
from tests.integration.inference.process import InferenceStub
from tests.unit.inference_service.tiny_onnx import picture

PATIENCE = 15.0
"""Maximum seconds until an answer of a running server, beyond the lease of a killed one;
generous, for a machine under other load."""
_PICTURES = [picture((200, 0, 0)), picture((0, 200, 0)), picture((0, 0, 200))]
_AWAY = frozenset({"UNAVAILABLE", "CANCELLED", "UNKNOWN", "NOT_READY"})
"""Error reasons of a call whose server was killed, or has not started yet."""


@dataclass(eq=False)
class KeyedRequest:
    """A request with its own idempotency key, and all of its answers."""

    key: str
    request: inference_service_pb2.InferRequest
    answers: set[bytes] = field(default_factory=set)

    @property
    def has_half_an_answer(self) -> bool:
        """Return True if an answer does not fit the request."""
        return not all(_answers(answer, self.request) for answer in self.answers)


@dataclass(eq=False)
class Callers:
    """Concurrent callers in threads; each may repeat a request of another.

    Args:
        address: returns a server's address, or None if no server is up.
        lease: lease of the servers' claims, seconds.
    """

    address: Callable[[random.Random], str | None]
    lease: float
    requests: list[KeyedRequest] = field(default_factory=list)
    refusals: "Counter[str]" = field(default_factory=Counter)
    """Error reasons that a killed server does not explain."""
    answered: int = 0
    """Number of answers, replays included."""
    over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep_asking(self, seed: int) -> None:
        """Send requests until `over`: new ones, and repeated ones."""
        chance = random.Random(seed)
        while not self.over.is_set():
            keyed = self._some_request(chance)
            while not self.over.is_set() and not self.ask(keyed, chance):
                time.sleep(0.02)

    def ask(self, keyed: KeyedRequest, chance: random.Random) -> bool:
        """Send a request once; return True if it was answered, or failed for no good reason."""
        address = self.address(chance)
        if address is None:
            return False
        client = InferenceStub(address)
        with client.channel:
            try:
                answer = client.raw(
                    keyed.request.SerializeToString(),
                    timeout=self.lease + PATIENCE,
                    metadata=(("idempotency-key", keyed.key),),
                )
            except grpc.RpcError as error:
                return self._is_refused(from_rpc_error(error))
        with self._lock:
            keyed.answers.add(answer)
            self.answered += 1
        return True

    def _is_refused(self, error: SightlineError) -> bool:
        if error.reason in _AWAY:
            return False
        with self._lock:
            self.refusals[error.reason] += 1
        return True

    def _some_request(self, chance: random.Random) -> KeyedRequest:
        with self._lock:
            if self.requests and chance.random() < 0.4:
                # Prefer a recent request, which may still be in flight.
                return chance.choice([*self.requests[-8:], chance.choice(self.requests)])
            images = [
                inference_pb2.Image(data=chance.choice(_PICTURES))
                for _ in range(chance.randint(1, 3))
            ]
            request = inference_service_pb2.InferRequest(images=images)
            keyed = KeyedRequest(str(uuid.uuid4()), request)
            self.requests.append(keyed)
            return keyed


def _answers(answer: bytes, request: inference_service_pb2.InferRequest) -> bool:
    try:
        response = inference_service_pb2.InferResponse.FromString(answer)
    except DecodeError:
        return False
    seen = [len(result.detections) for result in response.results]
    return seen == [1] * len(request.images)
