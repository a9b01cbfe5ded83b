"""Models that do not generate: classes, tags, answers, scores, vectors and transcripts over HTTP equal those of predict."""

import base64
import json
from pathlib import Path

import numpy as np
import openai
import pytest

from support.models import save_model
from support.rows import write_jsonl
from support.serving import serving
from weitiao import load, train
from weitiao.core.run import Run
from weitiao.pipeline.serving import open_served, read_targets

TEXTS = ["the quick brown fox", "seven wizards quietly mix", "lazy dog 你好 世界"]
ROWS = {
    "classification": [{"text": f"{TEXTS[i % 3]} {i}", "label": ["spam", "ham"][i % 2]} for i in range(8)],
    "token_classification": [
        {"tokens": ["the", "fox", "asks", "paris"], "tags": ["O", "B-ANIMAL", "O", "B-PLACE"]} for _ in range(8)
    ],
    "question_answering": [
        {"question": f"who asks {i}", "context": "the fox asks the dog", "answer": "the fox", "start": 0} for i in range(8)
    ],
    "rerank": [{"query": f"fox {i}", "document": "brown fox", "negative": f"lazy dog {i}"} for i in range(8)],
    "embedding": [{"query": f"fox {i}", "document": f"brown fox {i}"} for i in range(8)],
    "regression": [{"text": f"fox {i}", "value": i / 8} for i in range(8)],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    place = tmp_path_factory.mktemp("runs")
    base = save_model(place / "bert", "bert")
    trained = {}
    for objective, rows in ROWS.items():
        data = write_jsonl(place / f"{objective}.jsonl", rows)
        shape = {"steps": 2, "batch_size": 8, "learning_rate": 1e-2, "precision": "fp32", "evaluate_every": 0}
        plain = {
            "base": str(base),
            "data": str(data),
            "validation": 0,
            "method": {"name": "lora", "rank": 2},
            "train": shape,
        }
        plain |= {"objective": objective, "evaluate": {"metrics": ["loss"], "samples": 0}, "out": str(place / objective)}
        trained[objective] = train(plain, verbose=False)
    return trained


@pytest.fixture
def serve_run(runs: dict[str, Run]):
    return lambda objective: serving(open_served(read_targets([f"m={runs[objective].folder}"])))


def predicted(run: Run, rows: list) -> list[dict]:
    return list(load(run).predict(rows))


def test_classify(serve_run, runs) -> None:
    with serve_run("classification") as server:
        status, answer = server.post("/v1/classify", {"model": "m", "input": TEXTS})
        expected = predicted(runs["classification"], TEXTS)
        assert status == 200 and [x["label"] for x in answer["data"]] == [x["predicted"] for x in expected]
        for x, y in zip(answer["data"], expected):
            assert x["probabilities"] == pytest.approx(y["probabilities"], abs=1e-4) and x["num_classes"] == 2
            assert sum(x["probs"]) == pytest.approx(1, abs=1e-3)
        status, answer = server.post("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}]})
        assert status == 400 and "classify" in answer["error"]["message"]


def test_tag(serve_run, runs) -> None:
    with serve_run("token_classification") as server:
        status, answer = server.post("/v1/tag", {"model": "m", "input": "the fox asks paris"})
        (expected,) = predicted(runs["token_classification"], ["the fox asks paris"])
        assert status == 200 and answer["data"][0]["entities"] == expected["entities"]
        assert answer["data"][0]["tags"] == expected["tags"]


def test_answer(serve_run, runs) -> None:
    row = {"question": "who asks", "context": "the fox asks the dog"}
    with serve_run("question_answering") as server:
        status, answer = server.post("/v1/answer", {"model": "m", **row})
        (expected,) = predicted(runs["question_answering"], [row])
        assert status == 200 and answer["data"][0]["answer"] == expected["predicted"]
        start, end = answer["data"][0]["start"], answer["data"][0]["end"]
        assert row["context"][start:end] == expected["predicted"]
        assert (
            server.post("/v1/answer", {"model": "m", "inputs": [row, row]})[1]["data"][1]["answer"] == expected["predicted"]
        )
        assert server.post("/v1/answer", {"model": "m", "question": "x"})[0] == 400


def test_rerank(serve_run, runs) -> None:
    with serve_run("rerank") as server:
        body = {"model": "m", "query": "fox", "documents": TEXTS, "return_documents": True}
        status, answer = server.post("/v1/rerank", body)
        scores = [x["predicted"] for x in predicted(runs["rerank"], [{"query": "fox", "document": x} for x in TEXTS])]
        order = sorted(range(3), key=lambda i: -scores[i])
        assert status == 200 and [x["index"] for x in answer["results"]] == order
        assert answer["results"][0]["document"] == {"text": TEXTS[order[0]]}
        assert answer["results"][0]["relevance_score"] == pytest.approx(max(scores), abs=1e-4)
        assert len(server.post("/v1/rerank", body | {"top_n": 1})[1]["results"]) == 1


def test_embeddings_by_the_official_client(serve_run, runs) -> None:
    with serve_run("embedding") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        answer = client.embeddings.create(model="m", input=TEXTS)
        expected = load(runs["embedding"]).encode(TEXTS)
        assert np.allclose([x.embedding for x in answer.data], expected, atol=1e-5) and answer.usage.prompt_tokens > 0
        raw = server.post("/v1/embeddings", {"model": "m", "input": "x", "encoding_format": "base64"})[1]["data"][0]
        assert len(base64.b64decode(raw["embedding"])) == 4 * len(expected[0])
        assert server.post("/v1/embeddings", {"model": "m", "input": ["", "x"]})[0] == 400


def test_predict_any_objective(serve_run, runs) -> None:
    with serve_run("regression") as server:
        status, answer = server.post("/v1/predict", {"model": "m", "rows": [{"text": x} for x in TEXTS]})
        expected = predicted(runs["regression"], TEXTS)
        assert status == 200
        assert [x["predicted"] for x in answer["data"]] == pytest.approx([x["predicted"] for x in expected], abs=1e-4)
        assert server.post("/v1/predict", {"model": "m", "rows": [{"audio": "/etc/passwd"}]})[0] == 400
        assert server.post("/v1/predict", {"model": "m", "rows": [{"text": "x"}] * 257})[0] == 413


def test_requests_are_predicted_together(serve_run) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with serve_run("classification") as server:
        alone = server.post("/v1/classify", {"model": "m", "input": TEXTS[0]})[1]["data"][0]["probs"]
        calls: list[int] = []
        original = server.service.thread._predict
        server.service.thread._predict = lambda rows, task: calls.append(len(rows)) or original(rows, task)
        with ThreadPoolExecutor(24) as pool:
            bodies = [{"model": "m", "input": [TEXTS[0], *TEXTS[1 : i % 3]]} for i in range(24)]
            answers = list(pool.map(lambda x: server.post("/v1/classify", x), bodies))
        assert all(status == 200 for status, _ in answers) and len(calls) < 24
        for body, (_, answer) in zip(bodies, answers):
            assert len(answer["data"]) == len(body["input"])
            assert answer["data"][0]["probs"] == pytest.approx(alone, abs=1e-4)


def test_one_bad_text_fails_its_request_only(serve_run) -> None:
    with serve_run("classification") as server:
        status, answer = server.post("/v1/classify", {"model": "m", "input": ["fox", ""]})
        assert status == 400 and "input 1" in answer["error"]["message"]
        assert server.post("/v1/classify", {"model": "m", "input": "fox"})[0] == 200


def test_transcribe(tmp_path: Path) -> None:
    """By OpenAI's client and by plain bytes; what the client calls its file is not looked at."""
    soundfile = pytest.importorskip("soundfile")
    from support.speech import save_whisper, tone, write_wav

    base, file = save_whisper(tmp_path / "whisper"), write_wav(tmp_path / "a.wav", tone(440))
    expected = next(iter(load(base).predict([{"audio": str(file)}])))["predicted"]
    with serving(open_served(read_targets([f"m={base}"]))) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        assert client.audio.transcriptions.create(model="m", file=file).text == expected
        plain = server.request("POST", "/v1/transcribe", file.read_bytes(), {"Content-Type": "audio/wav"})
        assert json.loads(plain[2]) == {"text": expected}
        named = client.audio.transcriptions.create(model="m", file=("../../etc/passwd", file.read_bytes()))
        assert named.text == expected
        with pytest.raises(openai.BadRequestError):
            client.audio.transcriptions.create(model="m", file=("a.wav", b"not audio"))
        soundfile.write(tmp_path / "long.flac", np.zeros(16_000 * 600, "int16"), 16_000)  # ten minutes in a few kilobytes
        long = (tmp_path / "long.flac").read_bytes()
        status, _, answer = server.request("POST", "/v1/transcribe", long, {"Content-Type": "audio/flac"})
        assert status == 400 and b"600" in answer
        assert server.post("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}]})[0] == 400
