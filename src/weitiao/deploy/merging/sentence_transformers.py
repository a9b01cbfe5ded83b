"""Write the modules of sentence-transformers next to a model: pooling, and the head or the normalization.

    modules.json                        which modules, in order
    1_Pooling/config.json               one vector for a text: mean, cls (first), lasttoken
    2_Normalize                         vectors of length 1      SentenceTransformer(folder).encode(texts)
    2_Dense/{config.json, model...}     probabilities, numbers   SentenceTransformer(folder).encode(texts or pairs)
                                        scores of pairs          CrossEncoder(folder).predict(pairs)

A text is encoded as in training by its tokenizer alone. A decoder's text ends with the end-of-text token, whose hidden
state is its vector: the tokenizer is made to add it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.processors import Sequence as ProcessorSequence
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from weitiao.core.errors import ModelError
from weitiao.core.files import share_weights
from weitiao.core.plain_form import PlainForm
from weitiao.core.processor import SpecialTokens

MODULES = "sentence_transformers.models"  # the names that every version since 2 knows
SCORES = "sentence_transformers.base.modules.dense.Dense"  # CrossEncoder with modules of its own: since version 6
POOLING = {"mean": "mean", "first": "cls", "last": "lasttoken"}
LEGACY_POOLING = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken"}


def write_modules(
    folder: Path, form: PlainForm, heads: nn.ModuleDict, width: int, max_length: int, dtype: torch.dtype
) -> None:
    """Write all files but the model's and the tokenizer's own.

    Args:
        width: D, of the hidden states.
        max_length: tokens of a text; the rest is not read.
        dtype: of the head's weights.
    """
    assert form.pooling is not None
    modules = [("", f"{MODULES}.Transformer"), ("1_Pooling", f"{MODULES}.Pooling")]
    pooling: dict[str, Any] = {"word_embedding_dimension": width}
    pooling |= {f"pooling_mode_{x}": x == LEGACY_POOLING[form.pooling] for x in LEGACY_POOLING.values()}
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    about: dict[str, Any] = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"}
    weight, bias = form.linear(heads)
    if weight is None:
        modules.append(("2_Normalize", f"{MODULES}.Normalize"))
        (folder / "2_Normalize").mkdir(exist_ok=True)
    elif form.task == "pair_scores":
        modules.append(("2_Dense", SCORES))
        _write_dense(folder / "2_Dense", form, weight.to(dtype), bias, {"module_output_name": "scores"})
        about = {"model_type": "CrossEncoder", "activation_fn": _torch_name(form.activation)}
    else:
        modules.append(("2_Dense", f"{MODULES}.Dense"))
        _write_dense(folder / "2_Dense", form, weight.to(dtype), bias, {})
    rows = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    _write_json(folder / "modules.json", rows)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write_json(folder / "config_sentence_transformers.json", about)


def _torch_name(activation: str) -> str:
    return f"torch.nn.modules.{'linear' if activation == 'Identity' else 'activation'}.{activation}"


def _write_dense(folder: Path, form: PlainForm, weight: Tensor, bias: Tensor | None, names: dict[str, str]) -> None:
    outputs, width = weight.shape
    settings = {"in_features": width, "out_features": outputs, "bias": True}
    activation = "Identity" if form.task == "pair_scores" else form.activation
    _write_json(folder / "config.json", {**settings, "activation_function": _torch_name(activation), **names})
    tensors = {"linear.weight": weight, "linear.bias": weight.new_zeros(outputs) if bias is None else bias}
    stored = {name: x.to("cpu", weight.dtype).contiguous() for name, x in tensors.items()}
    save_file(stored, folder / "model.safetensors")
    share_weights(folder)


def add_end_token(tokenizer: PreTrainedTokenizerBase, frame: SpecialTokens) -> None:
    """Make a tokenizer that does not end a text add what training added: the end-of-text token; a line break in a pair.

    Raises:
        ModelError: it is a tokenizer that cannot be changed.
    """
    probe = list(tokenizer("a").input_ids)
    if tuple(probe[-len(frame.last) :]) == frame.last:
        return
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("this tokenizer cannot be made to end a text with the end-of-text token")
    parts = {"end": frame.last, "between": frame.between}
    special = [
        {"id": f"<{name}>", "ids": list(ids), "tokens": tokenizer.convert_ids_to_tokens(list(ids))}
        for name, ids in parts.items()
        if ids
    ]
    pair = "$A <between> $B <end>" if frame.between else "$A $B <end>"
    ends = TemplateProcessing(single="$A <end>", pair=pair, special_tokens=special)
    own = backend.post_processor
    backend.post_processor = ends if own is None else ProcessorSequence([own, ends])


def _write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
