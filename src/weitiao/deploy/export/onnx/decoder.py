"""Decoders as ONNX, by the model builder of onnxruntime-genai: a graph with a cache, any batch and length.

The builder's own default is 4 bits, which gives a SmolLM2 that agrees with itself at 71 % of the tokens: it is not offered.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from weitiao.core.errors import ModelError
from weitiao.core.hardware import needs
from weitiao.deploy.export.onnx.runtime import WIDTHS, open_session, quiet_environment
from weitiao.deploy.verification.fidelity import AnswerRow
from weitiao.deploy.verification.transformers_form import render_ids

GRAPH, SETTINGS = "model.onnx", "genai_config.json"


def build_decoder(model: Path, folder: Path, precision: str) -> None:
    """Write model.onnx, its weights, genai_config.json and the tokenizer.

    Args:
        model: a folder that plain transformers opens.
        precision: fp32 or fp16.

    Raises:
        RecipeError: a package is missing.
        ModelError: the builder does not know the family.
    """
    needs("onnxruntime_genai", "onnx", "ONNX")
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model), "-o", str(folder)]
        command += ["-p", precision, "-e", "cpu", "-c", cache]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=quiet_environment())
    if done.returncode or not (folder / GRAPH).is_file():
        lines = [x for x in done.stderr.strip().splitlines() if x.strip()]
        raise ModelError(
            "ONNX: the model builder of onnxruntime-genai does not take this model: {reason}",
            reason=lines[-1][:300] if lines else "-",
        )


class ONNXDecoder:
    """A decoder that ONNX Runtime runs, one row at a time or several."""

    def __init__(self, folder: Path) -> None:
        self.session: Any = open_session(folder / GRAPH)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        inputs = self.session.get_inputs()
        self.caches = [x for x in inputs if x.name.startswith("past_key_values")]
        self.width = WIDTHS[self.caches[0].type]
        self.has_positions = any(x.name == "position_ids" for x in inputs)
        self.kind = "onnx_fp32" if self.width == np.float32 else "onnx_fp16"
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["model"]
        self.head_width = int(settings["decoder"]["head_size"])
        stops = settings["eos_token_id"]
        self.stop_ids: tuple[int, ...] = tuple(stops if isinstance(stops, list) else [stops])

    def logits(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """[B, T, V] of rows of one length."""
        batch = np.asarray(ids, np.int64)
        feed = {"input_ids": batch, "attention_mask": np.ones_like(batch)}
        if self.has_positions:
            feed["position_ids"] = np.tile(np.arange(batch.shape[1]), (len(batch), 1))
        for x in self.caches:
            feed[x.name] = np.zeros((len(batch), x.shape[1], 0, self.head_width), self.width)
        try:
            return torch.from_numpy(self.session.run(["logits"], feed)[0].astype(np.float32))
        except Exception as error:  # ONNX Runtime raises types of its own: its kernels do not take every width
            reason = str(error).replace("\n", " ")[-300:]
            raise ModelError("ONNX Runtime refuses this graph: {reason}", reason=reason) from None

    def log_probs(self, rows: Sequence[AnswerRow]) -> list[Tensor]:
        return [self.logits([x.ids[:-1]])[0, len(x.prompt_ids) - 1 :].log_softmax(-1) for x in rows]

    def template_ids(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> list[int] | None:
        """By the tokenizer beside the graph."""
        return render_ids(self.tokenizer, messages, tools)

    def close(self) -> None:
        self.session = None
