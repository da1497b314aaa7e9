"""The playground: one page and its parts, read from the package once and served as they are.

The page needs no key, so that it can ask for one; what it then asks of the API does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

PAGE = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".flac": "audio/flac",
}
# blob: is the user's own clip, played from the browser's memory; nothing else may come from elsewhere.
CONTENT_SECURITY_POLICY = "; ".join((
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "media-src 'self' blob:",
    "connect-src 'self'",
    "form-action 'none'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
))  # fmt: skip
HEADERS = {
    "cache-control": "no-cache",  # kept, but asked about each time: a new server brings a new page
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "permissions-policy": "microphone=(self)",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of the page. etag: quoted, as it stands in the header."""

    body: bytes
    media_type: str
    etag: str

    def response(self, request: Request) -> Response:
        """The file; its head alone for HEAD; a 304 for a browser that has it."""
        headers = {**HEADERS, "etag": self.etag}
        if is_known(self.etag, request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        headers |= {"content-type": self.media_type, "content-length": str(len(self.body))}
        return Response(b"" if request.method == "HEAD" else self.body, headers=headers)


def add_playground_routes(app: FastAPI) -> None:
    """`GET /` and `GET /playground/...`; open to everybody."""
    assets = read_assets()

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return assets[PAGE].response(request)

    @app.head("/playground/{name:path}", include_in_schema=False)
    @app.get("/playground/{name:path}", include_in_schema=False)
    async def part(request: Request, name: str) -> Response:
        if name not in assets or name == PAGE:
            raise HTTPException(404)
        return assets[name].response(request)


def read_assets() -> Mapping[str, Asset]:
    """Every file of the page by its path. Nothing outside this table is ever served."""
    return dict(_walk(files("server") / "playground", ""))


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Asset]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _walk(item, f"{prefix}{item.name}/")
        elif media_type := MEDIA_TYPES.get(f".{item.name.rpartition('.')[2]}"):
            yield f"{prefix}{item.name}", _asset(item.read_bytes(), media_type)


def _asset(body: bytes, media_type: str) -> Asset:
    return Asset(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def is_known(etag: str, if_none_match: str) -> bool:
    """Whether the header names this version, compared weakly as GET has it (RFC 9110, 13.1.2)."""
    known = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in known or etag in known
