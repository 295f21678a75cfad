import subprocess
import sys

import grpc
import pytest
from structlog.contextvars import get_contextvars

from servicekit.calls.interceptors import GuardInterceptor
from servicekit.telemetry.tracing import join_trace, trace_id
from tests.unit.servicekit.echo import ECHO, Context, call, serving

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (PARENT, TRACE),
        (PARENT.replace("00-", "cc-", 1) + "-what-the-future-brings", TRACE),
        (PARENT + "-more", None),
        (PARENT.replace("00-", "ff-", 1), None),
        (PARENT.upper(), None),
        (PARENT.replace(TRACE, "0" * 32), None),
        (PARENT.replace("b7ad6b7169203331", "0" * 16), None),
        (PARENT[:-1], None),
        (PARENT + "\n", None),
        ("", None),
    ],
)
def test_trace_id(traceparent: str, expected: str | None) -> None:
    assert trace_id(traceparent) == expected


async def test_each_call_logs_its_own_trace() -> None:
    seen: list[dict[str, object]] = []

    async def act(_context: Context) -> None:
        seen.append(get_contextvars())

    async with (
        serving(act, [GuardInterceptor([ECHO], [join_trace])]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        await call(channel, "UnaryUnary", metadata=(("traceparent", PARENT),))
        await call(channel, "UnaryUnary")
        await call(channel, "UnaryUnary", metadata=(("traceparent", "nonsense"),))
    assert seen == [{"trace_id": TRACE}, {}, {}]


def test_servers_without_a_collector_do_not_load_opentelemetry() -> None:
    program = (
        "import ingest_service.__main__, inference_service.__main__, sys\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "[]\n"
