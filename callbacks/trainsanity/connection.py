"""The server as the sender sees it: packets out, answers in, every refusal a DeliveryError."""

from __future__ import annotations

import email.utils
import json
import time
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError

from trainsanity import wire
from trainsanity.errors import DeliveryError, RunRefused, WrongPacket

Alert = dict[str, Any]

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0  # a busy server may queue a packet for a while
MOST_ANSWER_BYTES = 16 * 1024 * 1024
# The server, or something before it, is busy; all others of 400 to 499 stay as they are.
_PASSING = {408, 425, 429}


@dataclass(frozen=True)
class Answer:
    """What the server says to a packet it has stored.

    Attributes:
        next_seq: number of the packet it wants next.
        cursor: to be sent with the next packet, to hear only of newer changes.
        alerts: opened or changed since the cursor that was sent.
        settled: the run has ended and every rule has spoken.
        run_url: the run's page.
    """

    next_seq: int
    cursor: int
    alerts: list[Alert]
    settled: bool
    run_url: str


class Connection:
    """One server, over connections that are used again.

    Every method raises DeliveryError where no proper answer comes.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=1, headers=headers, retries=False)

    def send(self, run_id: str, payload: bytes, cursor: int, seconds: float) -> Answer:
        """Posts one packet and waits for the answer, `seconds` at most.

        Raises:
            WrongPacket: the server wants another packet first.
        """
        body = self._call("POST", f"runs/{run_id}/packets?cursor={cursor}", seconds, payload)
        try:
            return Answer(
                next_seq=int(body["next_seq"]),
                cursor=int(body["cursor"]),
                alerts=[dict(alert) for alert in body["alerts"]],
                settled=bool(body["settled"]),
                run_url=str(body["run_url"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DeliveryError(f"{self.url} answered what no trainsanity server does") from error

    def run(self, run_id: str, seconds: float) -> dict[str, Any]:
        return self._call("GET", f"runs/{run_id}", seconds)

    def alerts(self, run_id: str, seconds: float) -> list[Alert]:
        alerts = self._call("GET", f"runs/{run_id}/alerts", seconds).get("alerts")
        return alerts if isinstance(alerts, list) else []

    def close(self) -> None:
        self._pool.clear()

    def _call(
        self, method: str, path: str, seconds: float, payload: bytes | None = None
    ) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        try:
            response = self._pool.request(
                method,
                f"{self.url}/api/v1/{path}",
                body=payload,
                headers={**self._pool.headers, "Content-Type": wire.MEDIA_TYPE},
                timeout=urllib3.Timeout(connect=min(CONNECT_SECONDS, seconds), read=seconds),
                redirect=False,  # it would carry evidence and key to where nobody chose
                preload_content=False,
            )
            data = _body(response, deadline)
        except (HTTPError, OSError) as error:
            raise DeliveryError(f"{self.url} cannot be reached ({reason(error)})") from error
        if response.status == 200:
            return _json(self.url, data)
        raise _refusal(self.url, response, data)


def _body(response: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    """The whole answer. The time limit of a socket holds for each piece, so watch the sum too."""
    data = b""
    while piece := response.read1(65536):
        data += piece
        if len(data) > MOST_ANSWER_BYTES or time.monotonic() > deadline:
            response.close()
            raise HTTPError(f"its answer does not end, after {len(data)} bytes")
    response.release_conn()
    return data


def _json(url: str, data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except ValueError as error:
        raise DeliveryError(f"{url} answered no JSON. Received: {data[:60]!r}") from error
    if not isinstance(body, dict):
        raise DeliveryError(f"{url} answered no JSON object. Received: {data[:60]!r}")
    return body


def _refusal(url: str, response: urllib3.BaseHTTPResponse, data: bytes) -> DeliveryError:
    status = response.status
    if 300 <= status < 400:
        target = response.headers.get("Location", "elsewhere")
        text = f"{url} redirects to {target} ({status}), which is not followed: use that as url"
        return DeliveryError(text, status=status, permanent=True)
    problem = _problem(data)
    text = f"{url} answered {status}: {problem.get('detail') or response.reason or 'no reason'}"
    expected = problem.get("expected_seq")
    if status == 409 and isinstance(expected, int) and expected >= 0:
        return WrongPacket(text, expected)
    if status == 410:
        return RunRefused(text, status=status)
    return DeliveryError(
        text,
        status=status,
        permanent=400 <= status < 500 and status not in _PASSING,
        retry_after=_retry_after(response.headers.get("Retry-After")),
    )


def _problem(data: bytes) -> dict[str, Any]:
    try:
        problem = json.loads(data)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _retry_after(value: str | None) -> float | None:
    """Seconds; the header holds them or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time())


def reason(error: BaseException) -> str:
    """The innermost reason: "Connection refused", not the pool's account of its attempts."""
    inner = getattr(error, "reason", None) or error.__cause__
    if isinstance(inner, BaseException):
        return reason(inner)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
