"""The chat page at `/`: one HTML, one script, one style sheet, from our own files and nowhere else."""

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

PAGE = Path(__file__).parent / "page"
FILES = {"/": ("chat.html", "text/html"), "/chat.js": ("chat.js", "text/javascript"), "/chat.css": ("chat.css", "text/css")}


def page_routes() -> APIRouter:
    """The page and its two files; there is no route that takes a file's name."""
    router = APIRouter()
    for path, (name, kind) in FILES.items():
        _add(router, path, (PAGE / name).read_bytes(), kind)
    return router


def _add(router: APIRouter, path: str, content: bytes, kind: str) -> None:
    @router.get(path, include_in_schema=False)
    def page() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers={"Cache-Control": "no-cache"})
