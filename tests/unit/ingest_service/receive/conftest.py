import pytest

from ingest_service.receive.decode import Decoder
from tests.unit.ingest_service.samples import DECODERS


@pytest.fixture(params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return DECODERS[request.param]
