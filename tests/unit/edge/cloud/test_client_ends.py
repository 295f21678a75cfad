"""Threads that share a client, and what ends its calls."""

import asyncio
import os
import signal
import sys
import threading
import time

import grpc
import pytest

from edge.cloud.aio_client import AsyncInferenceClient
from edge.cloud.client import InferenceClient
from edge.cloud.messages import prepare
from edge.cloud.pending import PendingAnswer
from servicekit.errors import SightlineError
from tests.fakes.inference import Hang, Reply, serving


def test_threads_share_one_client() -> None:
    with serving(Reply()) as fake, InferenceClient(fake.target) as client:
        answers: list[str] = []

        def ask(name: str) -> None:
            answers.append(client.infer([b"x"], image_ids=[name]).results[0].image_id)

        threads = [threading.Thread(target=ask, args=(str(n),)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answers, key=int) == [str(n) for n in range(16)]


def test_closing_ends_a_call_under_way_as_cancelled() -> None:
    with serving(Hang()) as fake:
        client = InferenceClient(fake.target)
        caught: list[SightlineError] = []

        def ask() -> None:
            try:
                client.infer([b"picture"])
            except SightlineError as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert fake.called.wait(5)
        client.close()
        thread.join(5)
    assert [error.code for error in caught] == [grpc.StatusCode.CANCELLED]


def test_a_cancelled_request_says_so() -> None:
    with serving(Hang()) as fake, InferenceClient(fake.target) as client:
        pending = client.send(prepare([b"picture"]), timeout=5.0)
        pending.cancel()
        with pytest.raises(SightlineError) as caught:
            pending.result()
    assert caught.value.code is grpc.StatusCode.CANCELLED


def waits_for_result() -> bool:
    """Return True if the main thread is in `PendingAnswer.result`."""
    main = threading.main_thread().ident
    frame = sys._current_frames()[main] if main else None
    while frame is not None and frame.f_code is not PendingAnswer.result.__code__:
        frame = frame.f_back
    return frame is not None


def test_an_interrupted_wait_ends_its_call() -> None:
    class InterruptError(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise InterruptError

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with serving(Hang()) as fake, InferenceClient(fake.target) as client:

            def disturb() -> None:
                while not (fake.called.wait(5) and waits_for_result()):
                    time.sleep(0.005)
                os.kill(os.getpid(), signal.SIGUSR1)

            threading.Thread(target=disturb, daemon=True).start()
            with pytest.raises(InterruptError) as caught:
                client.infer([b"picture"], timeout=20)
            assert fake.left.wait(5)
            assert caught.tb is not None  # which keeps the call from being collected
    finally:
        signal.signal(signal.SIGUSR1, before)


async def test_a_cancelled_task_ends_its_call() -> None:
    with serving(Hang()) as fake:
        async with AsyncInferenceClient(fake.target) as client:
            task = asyncio.create_task(client.infer([b"picture"]))
            await asyncio.to_thread(fake.called.wait, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(fake.left.wait, 5)
