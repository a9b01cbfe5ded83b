"""Encoders with their heads as ONNX, by transformers' own exporter: any batch and length.

Axes that have length 1 in the sample inputs would be frozen to 1, so the sample is a batch of two.
"""

import json
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from weitiao.core.errors import ModelError
from weitiao.core.hardware import needs
from weitiao.core.plain_form import PlainForm
from weitiao.deploy.export.onnx.runtime import open_session

AUTO_CLASSES: dict[str, Any] = {
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
    "masked_lm": AutoModelForMaskedLM,
}
OUTPUTS = {
    "token_classification": ("logits",), "masked_lm": ("logits",), "question_answering": ("start_logits", "end_logits"),
}  # fmt: skip
HIDDEN = ("last_hidden_state",)
GRAPH = "model.onnx"


def build_encoder(model_folder: Path, folder: Path, form: PlainForm | None) -> None:
    """Write model.onnx with its weights, config.json, the tokenizer and labels.json.

    Args:
        model_folder: a folder that plain transformers opens.

    Raises:
        RecipeError: a package is missing.
        ModelError: torch cannot export the model.
    """
    needs("onnxscript", "onnx", "ONNX")
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    model = load_encoder(model_folder, form)
    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder, local_files_only=True, trust_remote_code=False)
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [6, 7, 8, 9, 10, pad, pad, pad]])
    ids = ids % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    exporter, config = OnnxExporter(), OnnxConfig(dynamic=True)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            exported = exporter.export(model, {"input_ids": ids, "attention_mask": mask}, config=config)
            exported.save_pretrained(folder)
    except Exception as error:  # torch.export raises many types
        lines = str(error).strip().splitlines()
        raise ModelError(
            "ONNX: torch cannot export this model: {reason}", reason=lines[0][:300] if lines else type(error).__name__
        ) from None
    tokenizer.save_pretrained(folder)
    labels = {"task": form.task if form else "hidden_states", "labels": list(form.labels) if form else []}
    (folder / "labels.json").write_text(json.dumps(labels, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def load_encoder(folder: Path, form: PlainForm | None) -> Any:
    """The model with its head, in fp32; where the head is on pooled hidden states, the model that gives those."""
    auto_class = AUTO_CLASSES.get(form.task if form else "", AutoModel)
    model = auto_class.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    model.config.use_cache = False
    return model.eval()


class ONNXEncoder:
    """An encoder that ONNX Runtime runs."""

    def __init__(self, folder: Path, form: PlainForm | None) -> None:
        self.session = open_session(folder / GRAPH)
        self.names = OUTPUTS.get(form.task if form else "", HIDDEN)
        self.inputs = [x.name for x in self.session.get_inputs()]

    def outputs(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, T, C]"""
        feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        got = self.session.run(list(self.names), {name: feed[name] for name in self.inputs})
        return torch.from_numpy(np.stack(got, -1) if len(got) > 1 else got[0])


@torch.no_grad()
def torch_outputs(model: Any, ids: Tensor, mask: Tensor, form: PlainForm | None) -> Tensor:
    """The same of transformers' model."""
    out = model(input_ids=ids, attention_mask=mask)
    got = [out[name] for name in OUTPUTS.get(form.task if form else "", HIDDEN)]
    return torch.stack(got, -1) if len(got) > 1 else got[0]


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(ids, mask) [B, T], padded on the right."""
    length = max(map(len, rows))
    ids = torch.tensor([[*x, *[pad] * (length - len(x))] for x in rows])
    mask = torch.tensor([[1] * len(x) + [0] * (length - len(x)) for x in rows])
    return ids, mask
