"""What compressing changed: size, speed and quality of the merged model and of the result, side by side."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weitiao.core.files import write_text
from weitiao.core.messages import Message
from weitiao.core.score import Score, is_percentage
from weitiao.core.version import VERSION
from weitiao.deploy.compression.rewrite import CONFIG, Sizes
from weitiao.deploy.verification.fidelity import Fidelity

RECORD = "compression.json"
MEASURED = "measured"
"""In place of a method: the folder was compressed elsewhere."""


@dataclass(frozen=True)
class Measurement:
    """One form of the model."""

    sizes: Sizes
    memory: int
    """Bytes of its weights when it is open."""
    precision: str
    """It computes in."""
    prefill: float
    """Tokens per second of a prompt."""
    decode: float | None
    """Tokens per second of an answer, one row at a time; None: it does not generate."""
    decode_batch: float | None
    """Of eight rows at a time, all together."""
    fidelity: Fidelity | None = None
    """Against the merged model in fp32; None: no rows with answers."""
    scores: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True)
class CompressionReport:
    """What a technique did."""

    folder: Path
    method: Mapping[str, Any]
    """Its name and settings."""
    source: str
    before: Measurement | None = None
    """The merged model; None: files for another environment were written, and nothing was compressed."""
    after: Measurement | None = None
    notes: Sequence[Message] = ()
    rows: Message = Message("")
    """Which rows quality was measured on."""
    turns: int = 0
    """Of speed."""

    @property
    def lines(self) -> list[tuple[Message, str, str]]:
        """The table: what, of the merged model, of the compressed one."""
        before, after = self.before, self.after
        if before is None or after is None:
            return []
        both = (before, after)
        lines = [(label, *(form(x) for x in both)) for label, form in FIGURES if form(after) or form(before)]
        for name, score in after.scores.items():
            label, earlier = Message("{metric}, n = {n:,}", metric=name, n=score.n), before.scores.get(name)
            lines.append((label, _interval(earlier) if earlier else "", _interval(score)))
        return lines

    @property
    def comparison(self) -> Message:
        """Between what, and on what."""
        return Message(
            "compared with the merged model in fp32, on {rows}, so its own column shows what {precision} costs; brackets: "
            "95 % intervals; speed by the engine that serves, the median of {turns} turns in one process",
            precision=self.after.precision if self.after else "",
            rows=self.rows,
            turns=self.turns,
        )

    def as_json(self) -> dict[str, Any]:
        """As compression.json has it."""
        forms = {"before": self.before, "after": self.after}
        return {
            "weitiao": VERSION,
            "method": dict(self.method),
            "source": self.source,
            "rows": str(self.rows),
            "turns": self.turns,
            "notes": [str(x) for x in self.notes],
            **{name: _as_json(x) for name, x in forms.items() if x is not None},
        }

    def write(self) -> None:
        """compression.json, and README.md with the table."""
        write_text(self.folder / RECORD, json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n")
        titles = (Message("figure"), Message("merged"), Message("compressed"))
        table = [f"| {' | '.join(str(x) for x in titles)} |", "|---|---|---|"]
        table += [f"| {label} | {before} | {after} |" for label, before, after in self.lines]
        settings = ", ".join(f"{key}={value}" for key, value in self.method.items() if key != "name")
        named = f"{self.method['name']} ({settings})" if settings else self.method["name"]
        title = Message("Compressed with weitiao, method {method}", method=named)
        if named == MEASURED:
            title = Message("Compressed elsewhere, measured with weitiao")
        parts = [f"# {title}", str(OPENING[opening_of(self.folder)]), "\n".join(table), str(self.comparison)]
        parts += [str(x) for x in self.notes]
        (self.folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


OPENING: dict[str, Message] = {
    "compressed-tensors": Message(
        "Open it with `weitiao chat FOLDER`, with vLLM, or with transformers where compressed-tensors is installed: "
        "AutoModelForCausalLM.from_pretrained(FOLDER); encoders with AutoModel."
    ),
    "bitsandbytes": Message(
        "Open it with `weitiao chat FOLDER`, or with transformers where bitsandbytes is installed: "
        "AutoModelForCausalLM.from_pretrained(FOLDER); encoders with AutoModel."
    ),
    "plain": Message("Open it as any model: `weitiao chat FOLDER`, transformers, vLLM. Its weights are stored as before."),
}


def opening_of(folder: Path) -> str:
    """Which of OPENING: how the folder's config says that its weights are stored."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    method = (config.get("quantization_config") or {}).get("quant_method")
    return method if method in OPENING else "plain"


def _interval(score: Score) -> str:
    """
    >>> _interval(Score("accuracy", 0.9834, 662, 0.9705, 0.9907))
    '98.34 % [97.05, 99.07]'
    """
    if is_percentage(score.name) or score.name == "agreement":
        return f"{score.value:.2%} [{100 * score.low:.2f}, {100 * score.high:.2f}]".replace("%", " %")
    return f"{score.value:.3g} [{score.low:.3g}, {score.high:.3g}]"


def _agreement(x: Measurement) -> str:
    return "" if x.fidelity is None else _interval(x.fidelity.agreement)


def _kl(x: Measurement) -> str:
    return "" if x.fidelity is None else _interval(x.fidelity.kl)


def _positions(x: Measurement) -> str:
    return "" if x.fidelity is None else f"{x.fidelity.positions:,}"


FIGURES: tuple[tuple[Message, Any], ...] = (
    (Message("on disk (MB)"), lambda x: f"{x.sizes.bytes_on_disk / 1e6:,.1f}"),
    (Message("in memory (MB)"), lambda x: f"{x.memory / 1e6:,.1f}"),
    (Message("bits per weight"), lambda x: f"{x.sizes.bits:.2f}"),
    (Message("bits per linear weight"), lambda x: f"{x.sizes.linear_bits:.2f}"),
    (Message("weights (millions)"), lambda x: f"{x.sizes.weights / 1e6:,.1f}"),
    (Message("zeros in linear layers"), lambda x: f"{x.sizes.zeros / x.sizes.linear_weights:.1%}" if x.sizes.zeros else ""),
    (Message("computes in"), lambda x: x.precision),
    (Message("prompt (tokens/s)"), lambda x: f"{x.prefill:,.0f}"),
    (Message("answer, 1 row (tokens/s)"), lambda x: f"{x.decode:,.1f}" if x.decode else ""),
    (Message("answers, 8 rows (tokens/s)"), lambda x: f"{x.decode_batch:,.1f}" if x.decode_batch else ""),
    (Message("most probable token the same"), _agreement),
    (Message("KL (nats per token)"), _kl),
    (Message("answer tokens compared"), _positions),
)


def _as_json(x: Measurement) -> dict[str, Any]:
    record: dict[str, Any] = {
        "bytes_on_disk": x.sizes.bytes_on_disk,
        "bytes_in_memory": x.memory,
        "weights": x.sizes.weights,
        "bits_per_weight": round(x.sizes.bits, 3),
        "bits_per_linear_weight": round(x.sizes.linear_bits, 3),
        "zeros": x.sizes.zeros,
        "precision": x.precision,
        "prefill_tokens_per_second": round(x.prefill, 1),
        "decode_tokens_per_second": x.decode and round(x.decode, 2),
        "decode_tokens_per_second_8_rows": x.decode_batch and round(x.decode_batch, 2),
        "scores": {name: score.as_json() for name, score in x.scores.items()},
    }
    if x.fidelity is not None:
        fidelity = x.fidelity
        record |= {
            "agreement": fidelity.agreement.as_json(),
            "kl": fidelity.kl.as_json(),
            "positions": fidelity.positions,
            "rows": fidelity.rows,
        }
    return record
