"""The server answers as its own description says, whatever is asked."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
import schemathesis
from cast import diverging, lying
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving import serving
from stage import PATIENCE_SECONDS

from trainsanity_server.api.ingest import MEDIA_TYPES
from trainsanity_server.app import create_app
from trainsanity_server.settings import Settings


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.BaseSchema]:
    """A real server with some runs in it, and what it says of itself."""
    folder = tmp_path_factory.mktemp("openapi")
    with (
        serving(f"sqlite:///{folder / 'ts.db'}") as server,
        httpx2.Client(timeout=PATIENCE_SECONDS) as client,
    ):
        for _, packets in (lying(), diverging()):
            for packet in packets:
                server.post(client, packet)
        yield schemathesis.openapi.from_url(f"{server.address}/openapi.json")


schemathesis.serializer.alias([*MEDIA_TYPES], "application/octet-stream")

OPERATIONS = [
    f"{method.upper()} {path}"
    for path, methods in create_app(Settings()).openapi()["paths"].items()
    for method in methods
    if not path.endswith("/test")  # it would send a real message
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_it_answers_as_described(described, operation):
    method, path = operation.split()

    # Not every condition can be said in a schema: first_step is at most last_step.
    excluded = [positive_data_acceptance]

    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=described[path][method].as_strategy())
    def play(case):
        case.call_and_validate(excluded_checks=excluded)

    play()
