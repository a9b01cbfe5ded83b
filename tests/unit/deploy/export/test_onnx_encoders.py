"""Encoders with their heads as ONNX: tags, answers, vectors; any batch and length."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import weitiao
from support.models import save_model
from support.rows import write_jsonl
from weitiao.core.errors import ModelError
from weitiao.deploy.export.onnx.encoder import ONNXEncoder, load_encoder, padded, torch_outputs

pytest.importorskip("onnxscript", reason="pip install 'weitiao[onnx]'")
pytest.importorskip("onnxruntime", reason="pip install 'weitiao[onnx]'")

TAGS = [
    {"tokens": ["the", "fox", "is", "in", "paris"][:n] + ["dog"], "tags": ["O", "B-X", "O", "O", "B-Y"][:n] + ["B-X"]}
    for n in (1, 2, 3, 4, 5, 2, 3, 5)
]
PAIRS = [{"query": "the quick fox", "document": "brown fox"}, {"query": "lazy dog", "document": "dog"}] * 4
ROWS = {"token_classification": TAGS, "embedding": PAIRS}


@pytest.mark.parametrize("objective", ROWS)
def test_encoder_gives_the_outputs_of_transformers(objective: str, train_tiny: Any, tmp_path: Path) -> None:
    base = save_model(tmp_path / "bert", "bert")
    data = write_jsonl(tmp_path / "rows.jsonl", ROWS[objective])
    settings = {"base": str(base), "data": [{"path": str(data)}], "validation": 0, "objective": objective}
    run = train_tiny(**settings, train={"steps": 3}, evaluate={"metrics": "auto", "samples": 0})
    out = tmp_path / "out"
    report = weitiao.export(run, out, format="onnx")
    assert report.verification is None and "of the largest are the same" in " ".join(map(str, report.lines))
    labels = json.loads((out / "labels.json").read_text())
    assert labels["labels"] == (["O", "B-X", "B-Y"] if objective == "token_classification" else []) or set(
        labels["labels"]
    ) >= {"O", "B-X", "B-Y"}
    assert (out / "tokenizer.json").is_file()
    if objective == "embedding":
        assert "pooling" in " ".join(map(str, report.lines)) and (out / "modules.json").is_file()
    merged = weitiao.merge(run, tmp_path / "merged").folder
    form: Any = weitiao.load(run).objective.plain_form("encoder")
    model, graph = load_encoder(merged, form), ONNXEncoder(out, form)
    torch.manual_seed(0)
    for sizes in ((3,), (40, 7, 2, 19), (1,)):
        ids, mask = padded([torch.randint(5, 60, (n,)).tolist() for n in sizes], 0)
        expected, got = torch_outputs(model, ids, mask, form)[mask.bool()], graph.outputs(ids, mask)[mask.bool()]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_embedding_model_on_a_decoder(train_tiny: Any, tmp_path: Path) -> None:
    """The last hidden states of a decoder, with its causal mask, and the modules that pool them."""
    data = write_jsonl(tmp_path / "rows.jsonl", PAIRS)
    settings = {"data": [{"path": str(data)}], "validation": 0, "objective": "embedding"}
    run = train_tiny(**settings, train={"steps": 3}, evaluate={"metrics": "auto", "samples": 0})
    lines = " ".join(map(str, weitiao.export(run, tmp_path / "out", format="onnx").lines))
    assert "100.00%" in lines and "pooling (last)" in lines and (tmp_path / "out" / "modules.json").is_file()


def test_encoder_decoders_are_refused(train_tiny: Any, tmp_path: Path) -> None:
    base = save_model(tmp_path / "t5", "t5", template=None)
    data = write_jsonl(tmp_path / "rows.jsonl", [{"source": "the fox", "target": "dog"}] * 8)
    settings = {"base": str(base), "data": [{"path": str(data)}], "validation": 0, "objective": "seq2seq"}
    run = train_tiny(**settings, train={"steps": 1}, evaluate={"metrics": ["loss"], "samples": 0})
    for format, message in (("onnx", "encoder-decoder"), ("gguf", "by a decoder"), ("vllm", "by a decoder")):
        with pytest.raises(ModelError, match=message):
            weitiao.export(run, tmp_path / format, format=format)
        assert not (tmp_path / format).exists()
