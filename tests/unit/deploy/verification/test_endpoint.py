"""A served model compared with its Run: a real model behind a server that answers as vLLM's or llama.cpp's."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from rich.console import Console

from support.command import weitiao
from weitiao.core.errors import ModelError
from weitiao.core.reporter import Reporter
from weitiao.pipeline import inference, verification

DESK = Reporter(Console(quiet=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One training for all tests."""
    from support.models import save_model
    from support.rows import chat_rows, write_jsonl
    from weitiao.core.recipe import make_recipe
    from weitiao.pipeline.train import train

    folder = tmp_path_factory.mktemp("endpoint")
    rows, base = write_jsonl(folder / "chat.jsonl", chat_rows(24)), save_model(folder / "base")
    steps = {"steps": 12, "learning_rate": 1e-2, "batch_size": 4}
    plain = {"base": str(base), "data": [{"path": str(rows)}], "method": {"name": "lora", "rank": 4}, "train": steps}
    return train(make_recipe({**plain, "out": str(folder / "run")}), DESK)


class Served:
    """What a test server answers with."""

    def __init__(self, target: str, style: str) -> None:
        model = inference.open_model(target, "fp32")
        self.model, self.style, self.requests = model, style, 0
        self.key = self.redirect = ""
        self.added: list[int] = []  # tokens that its template adds

    def log_probs(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.model.torch_model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def completion(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.style == "strict" and set(body) - {"model", "prompt", "temperature", "max_tokens", "logprobs"}:
            return 422, {"error": "unknown field"}
        ids = body["prompt"]
        new: list[int] = []
        stops = self.model.assets.processor.stop_ids
        while len(new) < body["max_tokens"] and not (new and new[-1] in stops):
            new.append(int(self.log_probs([*ids, *new])[-1].argmax()))
        places = self.log_probs([*ids, *new])
        echoes = body.get("echo") and self.style == "vllm"
        shown = range(len(ids) + len(new)) if echoes else range(len(ids), len(ids) + len(new))
        choice: dict[str, Any] = {"finish_reason": "stop" if new and new[-1] in stops else "length"}
        tops = [None if t == 0 else places[t - 1].topk(5) for t in shown]
        if self.style == "llama.cpp":
            content = [[{"id": int(i), "token": "", "logprob": float(x)} for x, i in zip(*top)] for top in tops if top]
            choice["logprobs"] = {"content": [{**x[0], "top_logprobs": x} for x in content]}
        else:
            decode = self.model.assets.processor.decode
            as_ids = body.get("return_tokens_as_token_ids")
            name = (lambda i: f"token_id:{i}") if as_ids else (lambda i: decode([i], skip_special_tokens=False))
            choice["logprobs"] = {"top_logprobs": [top and {name(int(i)): float(x) for x, i in zip(*top)} for top in tops]}
        return 200, {"choices": [choice]}

    def chat(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        ids = self.model.prompt(inference.as_turns(body["messages"]))
        return 200, {"choices": [{}], "usage": {"prompt_tokens": len(ids) + len(self.added)}}


@pytest.fixture
def serve() -> Iterator[Any]:
    """serve(target, style) -> (address, what is served)."""
    servers = []

    def start(target: Any, style: str = "vllm") -> tuple[str, Served]:
        served = Served(str(target), style)

        class Handler(BaseHTTPRequestHandler):
            def answer(self, body: dict[str, Any] | None) -> None:
                served.requests += 1
                status, answer = 404, {}
                if served.key and self.headers.get("Authorization") != f"Bearer {served.key}":
                    status = 401
                elif served.redirect:
                    status = 302
                elif self.path == "/v1/models":
                    status, answer = 200, {"data": [{"id": "tiny"}]}
                elif body is not None and self.path == "/v1/completions":
                    status, answer = served.completion(body)
                elif body is not None and self.path == "/v1/chat/completions":
                    status, answer = served.chat(body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                if served.redirect:
                    self.send_header("Location", served.redirect)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *args: Any) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}", served

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("style", ["vllm", "llama.cpp", "strict"])
def test_the_model_that_was_trained_passes(run: Any, serve: Any, style: str) -> None:
    """With echo: one request a row; without: one a token; tokens by id or by text."""
    url, served = serve(run.folder, style)
    report = verification.verify_endpoint(str(run.folder), url, DESK, max_rows=6)
    report.check()
    assert report.agreement.value == 1 and report.kl.value <= 1e-4 and report.max_difference <= 1e-4
    assert report.applied == pytest.approx(1, abs=0.01) and report.prompts[0] == report.prompts[1] > 5
    assert served.requests < 80 if style == "vllm" else served.requests > report.agreement.n


def test_the_base_is_refused(run: Any, serve: Any) -> None:
    url, _ = serve(run.recipe.base)
    report = verification.verify_endpoint(str(run.folder), url + "/v1", DESK, max_rows=6)
    with pytest.raises(ModelError, match="it has -?0% of what training changed: the adapter was not applied"):
        report.check()


def test_other_template_is_refused(run: Any, serve: Any) -> None:
    url, served = serve(run.folder)
    served.added = [1]
    report = verification.verify_endpoint(str(run.folder), url, DESK, max_rows=3)
    with pytest.raises(ModelError, match="its chat template gives prompts of another length in .* conversations"):
        report.check()


def test_command_with_key(run: Any, serve: Any, tmp_path: Any) -> None:
    url, served = serve(run.folder)
    served.key = "secret"
    code, text = weitiao("verify", run.folder, url, "--max-rows", 2)
    assert code == 2 and "answers 401" in text and "secret" not in text
    (tmp_path / "key").write_text("secret\n")
    code, text = weitiao("verify", run.folder, url, "--max-rows", 2, "--key-file", tmp_path / "key", "--model", "tiny")
    assert code == 0 and "is the model that was trained" in text


def test_only_the_named_host_is_contacted(run: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No redirect is followed, and no proxy asked."""
    url, served = serve(run.folder)
    other, never = serve(run.folder)
    monkeypatch.setenv("http_proxy", other)
    monkeypatch.setenv("HTTP_PROXY", other)
    served.redirect = other + "/v1/models"
    with pytest.raises(ModelError, match="answers 302"):
        verification.verify_endpoint(str(run.folder), url, DESK, max_rows=2)
    assert never.requests == 0 and served.requests == 1


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8000", "http://user:word@127.0.0.1", "http://"])
def test_no_address(run: Any, url: str) -> None:
    with pytest.raises(ModelError, match="is no address of a server|is nothing that can be compared"):
        verification.verify_endpoint(str(run.folder), url, DESK)


def test_nothing_answers(run: Any) -> None:
    with pytest.raises(ModelError, match="cannot be reached"):
        verification.verify_endpoint(str(run.folder), "http://127.0.0.1:9", DESK)
