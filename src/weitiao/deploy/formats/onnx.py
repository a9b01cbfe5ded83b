"""ONNX: a graph for ONNX Runtime, in any language and on any machine that has it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from weitiao.core.errors import ModelError, RecipeError
from weitiao.core.messages import Message
from weitiao.core.score import proportion
from weitiao.deploy.export.format import ExportSource, Format, Written, megabytes
from weitiao.deploy.export.onnx.decoder import GRAPH, ONNXDecoder, build_decoder
from weitiao.deploy.export.onnx.encoder import ONNXEncoder, build_encoder, load_encoder, padded, torch_outputs

TOLERANCE = 1e-3  # of outputs in fp32, relative to the largest
AGREEMENT = 0.999
BATCHES = (1, 3, 2, 5)  # rows at a time: other sizes than the sample's
DECODER_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}  # of logits, relative: in a batch against alone


class ONNX(Format):
    """A graph for ONNX Runtime."""

    type: Literal["fp32", "fp16"] = "fp32"
    """What the weights are stored in; fp16 for decoders only. No int4: the builder's default was measured to change 29 % of
    the tokens of a small model."""

    def write(self, source: ExportSource, folder: Path) -> Written:
        """A decoder with its cache, or an encoder with its head."""
        if source.kind == "encoder_decoder":
            raise ModelError("ONNX: encoder-decoder models are not exported here. Use `merge` and the folder it writes.")
        if source.kind == "decoder" and source.form is None:
            build_decoder(source.folder, folder, self.type)
            written = Written(form=folder, commands=[f"onnxruntime_genai.Model({str(folder)!r})"])
            written.checks.append(check_shapes(folder, source.rows, self.type))
        else:
            if self.type != "fp32":
                raise RecipeError("type: encoders are exported in fp32")
            build_encoder(source.folder, folder, source.form)
            written = Written(commands=[f"onnxruntime.InferenceSession({str(folder / GRAPH)!r})"])
            if source.form is not None and source.form.pooling is not None:
                copy_modules(source.folder, folder)
                written.notes.append(
                    Message(
                        "the graph gives hidden states; pooling ({pooling}) and the head are beside it, as "
                        "sentence-transformers has them (modules.json)",
                        pooling=source.form.pooling,
                    )
                )
            written.checks.append(compare_outputs(source, folder))
        size = megabytes(*folder.glob(f"{GRAPH}*"))
        written.notes.append(
            Message("{folder}: {megabytes:,.1f} MB in {dtype}", folder=folder, megabytes=size, dtype=self.type)
        )
        return written


def copy_modules(merged: Path, folder: Path) -> None:
    """sentence-transformers' modules after the model: pooling, and the head."""
    for name in (x.name for x in merged.iterdir() if x.is_dir() and (x / "config.json").is_file()):
        shutil.copytree(merged / name, folder / name)
    for file in merged.glob("*sentence*.json"):
        shutil.copy2(file, folder / file.name)
    shutil.copy2(merged / "modules.json", folder / "modules.json")


def check_shapes(folder: Path, rows: Sequence[Sequence[int]], precision: str) -> Message:
    """Batches of other sizes and lengths give what each row gives alone.

    Raises:
        ModelError: they do not.
    """
    form, worst, n = ONNXDecoder(folder), 0.0, 0
    try:
        for batch in _batches(rows):
            length = min(map(len, batch))
            together = form.logits([x[:length] for x in batch])
            for i, row in enumerate(batch):
                alone = form.logits([row[:length]])[0]
                worst = max(worst, float((together[i] - alone).abs().max() / alone.abs().max()))
                n += 1
    finally:
        form.close()
    if not worst <= DECODER_TOLERANCE[precision]:
        raise ModelError(
            "{folder}: rows in a batch give other outputs than alone (relative {worst:.1e}).", folder=folder, worst=worst
        )
    return Message(
        "batches of 1 to 5 rows of several lengths give what a row gives alone: {worst:.1e} (n = {n} rows)",
        worst=worst,
        n=n,
    )


def compare_outputs(source: ExportSource, folder: Path) -> Message:
    """The graph's outputs of real rows beside those of transformers' model.

    Raises:
        ModelError: they differ by more than rounding.
    """
    model, graph = load_encoder(source.folder, source.form), ONNXEncoder(folder, source.form)
    pad, worst, same, n = source.tokenizer.pad_token_id or 0, 0.0, 0, 0
    for batch in _batches(source.rows):
        ids, mask = padded(batch, pad)
        expected, got = torch_outputs(model, ids, mask, source.form), graph.outputs(ids, mask)
        expected, got = expected[mask.bool()], got[mask.bool()]
        worst = max(worst, float((got - expected).abs().max() / expected.abs().max()))
        same += int((got.argmax(-1) == expected.argmax(-1)).sum())
        n += len(got)
    agreement = proportion("agreement", same, n)
    if not worst <= TOLERANCE or agreement.value < AGREEMENT:
        raise ModelError(
            "{folder} gives other outputs than the tuned model (relative {worst:.1e}, {same:.2%} of the largest the same).",
            folder=folder,
            worst=worst,
            same=agreement.value,
        )
    return Message(
        "outputs differ by at most {worst:.1e} (relative), {same:.2%} [{low:.2%}, {high:.2%}] of the largest are the same "
        "(n = {n:,} tokens of {rows} rows, in batches of 1 to 5)",
        worst=worst,
        same=agreement.value,
        low=agreement.low,
        high=agreement.high,
        n=n,
        rows=len(source.rows),
    )


def _batches(rows: Sequence[Sequence[int]]) -> list[Any]:
    """Rows in batches of several sizes, all rows once."""
    batches: list[Any] = []
    at = 0
    while at < len(rows):
        size = BATCHES[len(batches) % len(BATCHES)]
        batches.append(rows[at : at + size])
        at += size
    return batches
