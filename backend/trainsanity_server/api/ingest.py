"""The way in for packets."""

from __future__ import annotations

import asyncio
import zlib
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response

from trainsanity.wire import MAX_PACKET_BYTES, MEDIA_TYPE
from trainsanity_server.api import shapes
from trainsanity_server.errors import (
    MalformedError,
    TooLargeError,
    UnsupportedMediaTypeError,
)
from trainsanity_server.parts import PartsOf
from trainsanity_server.services.ingest import arrival_of, checked_run_id

MEDIA_TYPES = (MEDIA_TYPE, "application/msgpack")
# 15 window bits; +16: only gzip's frame, see zlib.decompressobj.
ENCODINGS = {"gzip": 31, "deflate": 15}

router = APIRouter(tags=["ingest"])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            name: {"schema": {"type": "string", "format": "binary"}} for name in MEDIA_TYPES
        },
    }
}


@router.post(
    "/runs/{run_id}/packets",
    response_model=shapes.Receipt,
    openapi_extra=_BODY,
    responses={
        status: {"description": text}
        for status, text in {
            409: "Another packet is expected: `expected_seq`.",
            410: "The run has been deleted.",
            413: f"More than {MAX_PACKET_BYTES} bytes.",
            415: "Another media type or encoding.",
            422: "No packet.",
            503: "The database cannot be written now.",
        }.items()
    },
)
async def add_packet(
    parts: PartsOf,
    request: Request,
    run_id: str,
    cursor: Annotated[int, Query(ge=0, description="From the last answer; 0 at first.")] = 0,
) -> Any:
    """Stores one packet and tells which alerts changed since `cursor`.

    Sent again, a packet that is stored already changes nothing and is answered alike.
    """
    # Not a plain `def`: it holds no session and only waits for the writer's COMMIT.
    _check_media_type(request)
    checked_run_id(run_id)
    body = decompressed(await request.body(), request.headers.get("Content-Encoding", ""))
    receipt = await asyncio.wrap_future(parts.ingest.submit(arrival_of(body, run_id), cursor))
    answer = {
        "next_seq": receipt.next_seq,
        "cursor": receipt.cursor,
        "alerts": [
            shapes.Alert.model_validate(alert).model_dump(mode="json") for alert in receipt.alerts
        ],
        "settled": receipt.settled,
        "run_url": f"{parts.settings.base_url}/runs/{run_id}",
    }
    return Response(orjson.dumps(answer), media_type="application/json")


def _check_media_type(request: Request) -> None:
    given = request.headers.get("Content-Type", "")
    if given.partition(";")[0].strip().lower() not in MEDIA_TYPES:
        raise UnsupportedMediaTypeError(
            f"Content-Type must be one of {', '.join(MEDIA_TYPES)}. Received: {given!r}"
        )


def decompressed(body: bytes, encoding: str) -> bytes:
    """The body as it was before `Content-Encoding`.

    Raises:
        TooLargeError: it holds more than a packet may; no more than that is ever unpacked.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ENCODINGS:
        raise UnsupportedMediaTypeError(
            f"Content-Encoding must be gzip or deflate. Received: {encoding!r}"
        )
    unpacker = zlib.decompressobj(ENCODINGS[encoding])
    try:
        plain = unpacker.decompress(body, MAX_PACKET_BYTES + 1)
    except zlib.error as error:
        raise MalformedError(f"the body is not {encoding} data ({error})") from error
    if len(plain) > MAX_PACKET_BYTES:
        raise TooLargeError(
            f"a packet holds at most {MAX_PACKET_BYTES} bytes. Received: more than that, unpacked"
        )
    if not unpacker.eof:
        raise MalformedError(f"the body ends in the middle of its {encoding} data")
    return plain
