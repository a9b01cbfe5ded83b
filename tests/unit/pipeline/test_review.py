"""`weitiao review`: the page is blind, votes are kept, and what came out can be read and exported."""

import json
import math
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from support.command import weitiao
from support.reviews import make_review, votes_of
from support.rows import write_jsonl
from weitiao.core.reporter import Reporter
from weitiao.evaluate.review.review_results import preference_rows
from weitiao.evaluate.review.review_set import ReviewSet
from weitiao.evaluate.review.votes import VoteFile, read_votes

pytest.importorskip("fastapi")
TestClient = pytest.importorskip("starlette.testclient").TestClient
KEY = "k" * 22
NAMES = ("old-model", "new-model")


def client_of(review: ReviewSet, folder: Path) -> Any:
    from weitiao.pipeline.review_server import ReviewServer, review_app

    return TestClient(review_app(review, folder, ReviewServer(), KEY), base_url="http://127.0.0.1:8010")


def judge_all(client: Any, judge: str, prefer: str) -> list[Any]:
    """A whole session as the page does it; returns all responses."""
    seen = [client.get(f"/{KEY}/{x}") for x in ("", "review.js", "review.css")]
    while True:
        response = client.get(f"/{KEY}/item", params={"judge": judge})
        seen.append(response)
        item = response.json()
        if item["vote"] is not None:
            return seen
        better = "left" if prefer in item["left"] else "right"
        body = {
            "id": item["id"],
            "judge": judge,
            "verdict": better,
            "rubrics": {"tone": "tie"},
            "comment": "",
            "seconds": 1.5,
        }
        seen.append(client.post(f"/{KEY}/votes", json=body))
        assert seen[-1].status_code == 200


def test_nothing_tells_which_model_is_which(tmp_path: Path) -> None:
    """A whole session: no name, no target, no number of a model in a page, a header or an answer; sides are uniform."""
    review = make_review(200)
    with client_of(review, tmp_path) as client:
        seen = judge_all(client, "ann", "answer k")
    traffic = b"\n".join(x.content + str(sorted(x.headers.items())).encode() for x in seen)
    for name in (*NAMES, "runs/", review.secret):
        assert name.encode() not in traffic
    items = [x.json() for x in seen if "/item" in str(x.url)]
    assert all(x.keys() == items[0].keys() for x in items)  # the same fields, whatever is on the left
    assert len({x["id"] for x in items[:-1]}) == 200 and [x["position"] for x in items[:-1]] == list(range(200))
    left = sum("answer k" in x["left"] for x in items[:-1])
    assert abs(left - 100) < 4 * math.sqrt(50)
    sides = Counter((x["position"] % 2, "answer k" in x["left"]) for x in items[:-1])
    assert all(abs(n - 50) < 4 * math.sqrt(37.5) for n in sides.values())
    assert not any(name in (tmp_path / "votes.jsonl").read_text() for name in NAMES)
    lengths = {len(str(sorted(x.headers.items()))) - len(str(len(x.content))) for x in seen if "/item" in str(x.url)}
    assert len(lengths) == 1  # headers say nothing either


def test_results_are_hidden_until_all_is_judged(tmp_path: Path) -> None:
    review = make_review(5)
    with client_of(review, tmp_path) as client:
        assert client.get(f"/{KEY}/results", params={"judge": "ann"}).status_code == 403
        judge_all(client, "ann", "answer k")
        found = client.get(f"/{KEY}/results", params={"judge": "ann"})
        assert found.status_code == 200 and found.json()["pairs"][0]["first_wins"] == 5
        assert found.json()["alpha"] is None and found.json()["rubrics"]["tone"][0]["ties"] == 5
        assert client.get(f"/{KEY}/results", params={"judge": "bob"}).status_code == 403


def test_votes_are_kept_and_gone_on_with(tmp_path: Path) -> None:
    review = make_review(6)
    with client_of(review, tmp_path) as client:
        item = client.get(f"/{KEY}/item", params={"judge": "ann"}).json()
        body = {"id": item["id"], "judge": "ann", "verdict": "both_bad", "comment": "评语", "rubrics": {"safety": "left"}}
        assert client.post(f"/{KEY}/votes", json=body).json() == {"done": 1, "total": 6}
        assert (tmp_path / "votes.jsonl").read_text(encoding="utf-8").count("\n") == 1  # on the disk already
    with open(tmp_path / "votes.jsonl", "ab") as file:
        file.write(b'{"id": "torn')  # killed while writing
    with client_of(review, tmp_path) as client:
        again = client.get(f"/{KEY}/item", params={"judge": "ann"}).json()
        assert again["position"] == 1 and again["done"] == 1 and again["id"] != item["id"]
        back = client.get(f"/{KEY}/item", params={"judge": "ann", "position": 0}).json()
        assert back["vote"] == {"verdict": "both_bad", "comment": "评语", "rubrics": {"safety": "left"}}
        client.post(f"/{KEY}/votes", json={**body, "verdict": "left"})
        assert client.get(f"/{KEY}/item", params={"judge": "bob"}).json()["done"] == 0
    votes = read_votes(tmp_path)
    assert len(votes) == 1 and votes[0].verdict == "left" and votes[0].comment == "评语"


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("GET", "/", {}, None, 404),
        ("GET", "/wrong/item?judge=ann", {}, None, 404),
        ("GET", f"/{KEY}/item?judge=ann", {"Host": "evil.example"}, None, 403),
        ("GET", f"/{KEY}/item?judge=ann", {"Origin": "http://evil.example"}, None, 403),
        ("GET", f"/{KEY}/item", {}, None, 400),
        ("GET", f"/{KEY}/item?judge=ann&position=99", {}, None, 404),
        ("POST", f"/{KEY}/votes", {"Origin": "http://evil.example"}, {"id": "ID", "judge": "ann", "verdict": "left"}, 403),
        ("POST", f"/{KEY}/votes", {"Content-Type": "text/plain"}, {"id": "ID", "judge": "ann", "verdict": "left"}, 415),
        ("POST", f"/{KEY}/votes", {}, {"id": "nothing", "judge": "ann", "verdict": "left"}, 404),
        ("POST", f"/{KEY}/votes", {}, {"id": "ID", "judge": "ann", "verdict": "new-model"}, 400),
        ("POST", f"/{KEY}/votes", {}, {"id": "ID", "judge": "", "verdict": "left"}, 400),
        ("POST", f"/{KEY}/votes", {}, {"id": "ID", "judge": "ann", "verdict": "left", "comment": "x" * 5000}, 400),
        ("POST", f"/{KEY}/votes", {}, {"id": "ID", "judge": "ann", "verdict": "left", "rubrics": {"beauty": "left"}}, 400),
    ],
)
def test_what_is_refused(method: str, path: str, headers: Any, body: Any, status: int, tmp_path: Path) -> None:
    review = make_review(3)
    if body and body["id"] == "ID":
        body = {**body, "id": review.id_of("ann", review.pairs[0])}
    with client_of(review, tmp_path) as client:
        sent = None if body is None else json.dumps(body).encode()
        own = {"Content-Type": "application/json", **headers} if body else headers
        assert client.request(method, path, content=sent, headers=own).status_code == status
    assert not read_votes(tmp_path)


def test_another_judges_id_is_no_vote(tmp_path: Path) -> None:
    review = make_review(3)
    with client_of(review, tmp_path) as client:
        body = {"id": review.id_of("ann", review.pairs[0]), "judge": "bob", "verdict": "left"}
        assert client.post(f"/{KEY}/votes", json=body).status_code == 404


def test_many_judges_at_once(tmp_path: Path) -> None:
    review, votes = make_review(20), VoteFile(tmp_path)
    threads = [
        threading.Thread(target=lambda name=name: [votes.add(x) for x in votes_of(review, name, lambda p, d: "tie")])
        for name in ("ann", "bob", "eve", "王")
    ]
    for x in threads:
        x.start()
    for x in threads:
        x.join()
    assert len(read_votes(tmp_path)) == 80 == len(votes.every)


# -- the command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"what time is it {i}"} for i in range(12)])


@pytest.fixture
def prepared(prompts: Path, train_tiny: Any, tiny_llama: Path) -> tuple[str, ...]:
    run = train_tiny(train={"steps": 20}).folder
    return ("review", f"old-model={tiny_llama}", f"new-model={run}", "--prompts", str(prompts), "--max-new-tokens", "6")


def test_prepare_judge_and_export(prepared: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = weitiao(*prepared, "--no-page")
    assert code == 0 and "results: weitiao review --results reviews/old-model-new-model" in said, said
    folder = Path("reviews/old-model-new-model")
    review = ReviewSet.read(folder)
    assert len(review.items) == 12 and review.pairs
    code, said = weitiao("review", "--results", folder)
    assert code == 0 and "nobody has voted yet" in said
    code, said = weitiao("review", "--results", folder, "--export", "pairs")
    assert code == 2 and "no vote is decided" in said
    votes = VoteFile(folder)
    for name in ("ann", "bob"):
        for x in votes_of(review, name, lambda pair, drawn: "new-model"):
            votes.add(x)
    code, said = weitiao("review", "--results", folder)
    assert code == 0 and f"votes: ann {len(review.pairs)}, bob {len(review.pairs)}" in said and "alpha 1.00" in said
    record = json.loads(weitiao("review", "--results", folder, "--json")[1])
    assert record["pairs"][0]["second_wins"] == len(review.pairs) and record["judges"]["ann"] == len(review.pairs)
    code, said = weitiao("review", "--results", folder, "--export", "pairs")
    rows = [json.loads(x) for x in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert code == 0 and len(rows) == len(review.pairs) and rows == preference_rows(review, votes.every)
    monkeypatch.setattr("weitiao.pipeline.review.open_model", None)  # taken up again without a model
    assert weitiao(*prepared, "--no-page")[0] == 0
    code, said = weitiao(*prepared[:-1], "7", "--no-page")
    assert code == 2 and "a review of other models, prompts or settings" in said


def test_interrupted_answers_are_gone_on_with(prepared: tuple[str, ...]) -> None:
    from weitiao.pipeline.review import ReviewOptions, prepare_review

    options = ReviewOptions((prepared[1], prepared[2]), prepared[4])
    from rich.console import Console

    reporter = Reporter(Console(quiet=True))
    review, folder = prepare_review(options, reporter)
    files = sorted((folder / "answers").glob("*.jsonl"))
    lines = {x: x.read_text(encoding="utf-8").splitlines() for x in files}
    assert [len(x) for x in lines.values()] == [12, 12]
    files[0].write_text("\n".join(lines[files[0]][:5]) + "\n", encoding="utf-8")
    (folder / "review.json").unlink()
    again, _ = prepare_review(options, reporter)
    assert again.items == review.items
    assert files[0].read_text(encoding="utf-8").splitlines()[:5] == lines[files[0]][:5]
    assert len(files[0].read_text(encoding="utf-8").splitlines()) == 12


@contextmanager
def judge_server(answer: Any) -> Iterator[str]:
    """An OpenAI-compatible endpoint with one model; answer(messages) -> (status, text)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "referee"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, text = answer(body["messages"], self.headers.get("Authorization"))
            self._send(status, {"choices": [{"message": {"content": text}}]} if text is not None else {"oops": 1})

        def _send(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_judge_at_an_address(prepared: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEITIAO_JUDGE_KEY", "secret-of-the-judge")
    keys: set[str] = set()

    def first_is_longer(messages: Any, key: str) -> tuple[int, str]:
        keys.add(key)
        a, b = messages[1]["content"].split("[Answer A]\n")[1].split("\n\n[Verdict]")[0].split("\n\n[Answer B]\n")
        return 200, "[[A]]" if (len(a), a) > (len(b), b) else "[[B]]"

    with judge_server(first_is_longer) as url:
        code, said = weitiao(*prepared, "--no-page", "--judge", url)
    assert code == 0 and "judge model referee:" in said and "0 verdicts changed with the places" in said
    assert "how far it agrees with people is not known" in said and keys == {"Bearer secret-of-the-judge"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((500, ""), "answers 500"),
        ((200, None), "gives no answer that can be read"),
        ((400, ""), "refuses"),
        ((200, "I am a tomato"), "it cannot judge"),
    ],
)
def test_judge_that_does_not_judge(answer: Any, expected: str, prepared: tuple[str, ...]) -> None:
    with judge_server(lambda messages, key: answer) as url:
        code, said = weitiao(*prepared, "--no-page", "--judge", url)
    assert code == 2 and expected in said


def test_dead_judge_is_named(prepared: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        code, said = weitiao(*prepared, "--no-page", "--judge", f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert code == 2 and "cannot be reached" in said


def test_judge_of_this_machine_that_talks_nonsense(prepared: tuple[str, ...], tiny_llama: Path) -> None:
    code, said = weitiao(*prepared, "--no-page", "--judge", str(tiny_llama))
    assert code == 2 and "it cannot judge" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["review"], "give two or more models and --prompts FILE"),
        (["review", "A", "B"], "give two or more models and --prompts FILE"),
        (["review", "A", "B", "--prompts", "nothing.jsonl", "--no-page"], "there is no file nothing.jsonl"),
        (["review", "A", "--prompts", "prompts.jsonl", "--no-page"], "give two or more models"),
        (["review", "A", "A", "--prompts", "prompts.jsonl", "--no-page"], "there is nothing to judge"),
        (["review", "--results", "nothing"], "nothing holds no review"),
        (["review", "--results", "nothing", "--export", "other"], "--export pairs goes with --results"),
    ],
)
def test_bad_input(words: list[str], expected: str, prompts: Path, tiny_llama: Path) -> None:
    words = [str(tiny_llama) if x == "A" else x for x in words]
    code, said = weitiao(*words)
    assert code == 2 and expected in said
