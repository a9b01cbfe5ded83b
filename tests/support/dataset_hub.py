"""A local server with the documented interfaces of Hugging Face's and ModelScope's data sets, and their accidents.

Hugging Face:  GET /api/datasets/ID/revision/REV?blobs=true      HEAD, GET /datasets/ID/resolve/COMMIT/PATH
ModelScope:    GET /api/v1/datasets/ID/repo/tree                 GET /api/v1/datasets/ID/repo?Revision=...&FilePath=...
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "4f1a2b3c" * 5


@dataclass
class DatasetHub:
    """What is served, and what was asked for."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main", COMMIT, "refs/convert/parquet", "master")
    cut: int = 0
    """Bytes of a file after which the connection breaks, as long as `cuts` lasts."""
    cuts: int = 0
    damaged: bool = False
    """The bytes that are sent are not those that are listed."""
    status: int = 200
    code: str = ""
    """Hugging Face's X-Error-Code."""
    requests: list[str] = field(default_factory=list)
    """METHOD path [range]."""
    url: str = ""


@contextmanager
def serving(hub: DatasetHub) -> Iterator[DatasetHub]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            parts = unquote(url.path).strip("/").split("/")
            hub.requests.append(f"{self.command} {unquote(url.path)} {self.headers.get('Range', '')}".strip())
            if hub.status != 200:
                self._json(hub.status, {"error": "refused", "Code": hub.status, "Message": "refused", "Success": False})
            elif parts[:2] == ["api", "v1"] and parts[5:7] == ["repo", "tree"]:
                self._json(200, {"Code": 200, "Success": True, "Data": {"Files": self._modelscope_files()}})
            elif parts[:2] == ["api", "v1"] and parts[5:6] == ["repo"] and "FilePath" in query:
                self._file(query["FilePath"])
            elif parts[:2] == ["api", "datasets"]:
                self._hugging_face_info("/".join(parts[5:]) or "main")
            elif parts[0] == "datasets" and parts[3] == "resolve":
                self._file("/".join(parts[5:]))
            else:
                self._json(404, {"Code": 404, "Message": "not found", "Success": False})

        def _hugging_face_info(self, revision: str) -> None:
            if revision not in hub.revisions:
                self._json(404, {"error": "Revision Not Found"}, "RevisionNotFound")
                return
            siblings = [
                {"rfilename": name, "size": len(raw), "blobId": hashlib.sha1(raw).hexdigest(),
                 "lfs": {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw), "pointerSize": 130}}
                for name, raw in hub.files.items()
            ]  # fmt: skip
            self._json(200, {"id": "owner/name", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

        def _modelscope_files(self) -> list[dict[str, Any]]:
            return [
                {"Path": name, "Name": name.split("/")[-1], "Type": "blob", "Size": len(raw),
                 "Sha256": hashlib.sha256(raw).hexdigest()}
                for name, raw in hub.files.items()
            ]  # fmt: skip

        def _json(self, status: int, content: Any, code: str = "") -> None:
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            if code or hub.code:
                self.send_header("X-Error-Code", code or hub.code)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(raw)

        def _file(self, name: str) -> None:
            listed = hub.files[name]
            raw = bytes(len(listed)) if hub.damaged else listed
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]) if "Range" in self.headers else 0
            stop = self.headers["Range"].split("-")[1] if "Range" in self.headers else ""
            end = int(stop) + 1 if stop else len(raw)
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(end - start))
            self.send_header("Accept-Ranges", "bytes")
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(raw)}")
            self.send_header("ETag", f'"{hashlib.sha256(listed).hexdigest()}"')
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(listed).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(raw)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.cuts > 0 and end - start > hub.cut:
                hub.cuts -= 1
                self.wfile.write(raw[start : start + hub.cut])
                self.wfile.flush()
                self.close_connection = True
                return
            self.wfile.write(raw[start:end])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
