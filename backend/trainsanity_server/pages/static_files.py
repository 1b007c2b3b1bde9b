"""Static files: the compressed twin where there is one, and how long a browser may keep each."""

from __future__ import annotations

import mimetypes
import os

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOR_EVER = "public, max-age=31536000, immutable"
ASK_FIRST = "no-cache"
# The denser encoding first.
TWINS = (("br", ".br"), ("gzip", ".gz"))


class CompressedStaticFiles(StaticFiles):
    """Serves `x.js.br` or `x.js.gz` for `x.js` to whoever reads it. The build made them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await self._encoded(path, scope)
        response.headers["Vary"] = "Accept-Encoding"
        is_hashed = path.startswith("vendor" + os.sep)
        response.headers["Cache-Control"] = FOR_EVER if is_hashed else ASK_FIRST
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    async def _encoded(self, path: str, scope: Scope) -> Response:
        accepted = _accepted(scope)
        for encoding, suffix in TWINS:
            if encoding in accepted and self.lookup_path(path + suffix)[1] is not None:
                response = await super().get_response(path + suffix, scope)
                response.headers["Content-Encoding"] = encoding
                response.headers["Content-Type"] = _media_type(path)
                return response
        return await super().get_response(path, scope)


def _accepted(scope: Scope) -> set[str]:
    value = next((v for k, v in scope["headers"] if k == b"accept-encoding"), b"").decode("latin-1")
    options = (part.partition(";") for part in value.split(","))
    return {name.strip().lower() for name, _, weight in options if weight.strip() != "q=0"}


def _media_type(path: str) -> str:
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
