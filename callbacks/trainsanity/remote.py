"""Asks a trainsanity server, for the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import urllib3

from trainsanity.connection import reason
from trainsanity.errors import TrainsanityError

TIMEOUT = urllib3.Timeout(connect=5.0, read=30.0)  # seconds
# A moment's fault is tried again; a redirect would carry the key elsewhere.
RETRIES = urllib3.Retry(2, redirect=False, backoff_factor=0.2, status_forcelist=(502, 503, 504))

LONGEST_QUESTION = 200  # characters that the server looks for; names may be longer

Query = Mapping[str, str | int | Sequence[str] | None]


class RemoteError(TrainsanityError):
    """The server did not answer as asked.

    Attributes:
        status: HTTP status, or None where no answer came.
    """

    def __init__(self, text: str, *, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class Remote:
    """The JSON calls of one server.

    >>> Remote("http://127.0.0.1:8321").get("/runs", limit=5)["runs"]
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Accept": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._pool = urllib3.PoolManager(headers=headers, timeout=TIMEOUT, retries=RETRIES)

    def get(self, path: str, **query: str | int | Sequence[str] | None) -> dict[str, Any]:
        """`GET /api/v1{path}`.

        Raises:
            RemoteError: no server, or it says no; the text says what to do.
        """
        return self._json(self.request(f"/api/v1{path}", query))

    def delete(self, path: str) -> None:
        """`DELETE /api/v1{path}`.

        Raises:
            RemoteError: as for `get`.
        """
        response = self.request(f"/api/v1{path}", method="DELETE")
        if response.status != 204:
            self._json(response)

    def request(
        self, path: str, query: Query | None = None, *, method: str = "GET"
    ) -> urllib3.BaseHTTPResponse:
        pairs = [(k, v) for k, v in (query or {}).items() if v is not None]
        address = f"{self.url}{path}" + (f"?{urlencode(pairs, doseq=True)}" if pairs else "")
        try:
            return self._pool.request(method, address)
        except urllib3.exceptions.HTTPError as error:
            raise RemoteError(
                f"no trainsanity server answers at {self.url} ({reason(error)}). Start one with "
                "`trainsanity serve`, or name another with --url or TRAINSANITY_URL."
            ) from error

    def _json(self, response: urllib3.BaseHTTPResponse) -> dict[str, Any]:
        try:
            body = json.loads(response.data)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            kind = response.headers.get("Content-Type", "nothing")
            raise RemoteError(
                f"what answers at {self.url} is no trainsanity server. "
                f"Received: {response.status} with {kind}",
                status=response.status,
            )
        if response.status == 401:
            raise RemoteError(
                f"{self.url} asks for a key: give it with --api-key or TRAINSANITY_API_KEY. "
                f"It says: {body.get('detail', '401')}",
                status=401,
            )
        if response.status >= 400:
            said = body.get("detail") or body.get("title") or "no reason"
            hint = ""
            if response.status == 404 and str(said).startswith("there is nothing at"):
                hint = f". Is {self.url} the address of the server, with nothing but its path?"
            raise RemoteError(f"{said} ({response.status}){hint}", status=response.status)
        return body

    def runs(self, limit: int | None = None, **query: str | None) -> Iterator[dict[str, Any]]:
        """Runs, newest first, page after page; `limit` of them at most."""
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            page = self.get("/runs", limit=min(left or 100, 100), cursor=cursor, **query)
            yield from page["runs"]
            left = None if left is None else left - len(page["runs"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def run(self, wanted: str) -> dict[str, Any]:
        """The run of this id, of an id that begins so, or of this name.

        Raises:
            RemoteError: there is none, or several; the text lists them.
        """
        try:
            return self.get(f"/runs/{quote(wanted, safe='')}")
        except RemoteError as error:
            if error.status not in (404, 422):
                raise
        found = [
            run
            for run in self.runs(limit=1000, q=wanted[:LONGEST_QUESTION])
            if run["name"] == wanted or run["id"].startswith(wanted)
        ]
        if len(found) == 1:
            return found[0]
        if not found:
            raise RemoteError(
                f"{self.url} has no run of this id or name; `trainsanity runs` lists them. "
                f"Received: {wanted!r}",
                status=404,
            )
        ids = ", ".join(run["id"] for run in found[:5])
        raise RemoteError(
            f"{len(found)} runs are called so: give an id. Received: {wanted!r}, which is {ids}"
            + (" and others" if len(found) > 5 else "")
        )


def run_path(run: Mapping[str, Any], part: str) -> str:
    return f"/runs/{quote(run['id'], safe='')}/{part}"
