"""A GGUF file, opened by llama.cpp (extra: weitiao[llamacpp]); without it nothing is compared."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFReader, LlamaFileType
from torch import Tensor
from transformers import AutoTokenizer

from weitiao.core.errors import ModelError
from weitiao.core.tensor_files import check_gguf
from weitiao.deploy.export.gguf.llama_cpp import LlamaCpp
from weitiao.deploy.export.gguf.write import write_model
from weitiao.deploy.verification.fidelity import AnswerRow

MAX_CONTEXT = 4096  # tokens: rows of a comparison are shorter, and the cache costs memory
STOPS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
END_OF_TURN = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
)
"""Control tokens that llama.cpp takes as stop tokens by their text (llama-vocab.cpp)."""


def recognizes(source: str) -> bool:
    """Whether the source is a GGUF file, or a folder with one."""
    return gguf_file(Path(source)) is not None


def gguf_file(source: Path) -> Path | None:
    """The one file in GGUF."""
    files = sorted(source.glob("*.gguf")) if source.is_dir() else [source] if source.suffix == ".gguf" else []
    return files[0] if len(files) == 1 and files[0].is_file() else None


def open_form(source: str, base: Path) -> "GGUFForm":
    """Open it with llama.cpp; an adapter on top of its base model in F16, which is written for that.

    Args:
        base: the folder of the Run's base model.
    """
    file = gguf_file(Path(source))
    if file is None:
        raise ModelError("{source} is no GGUF file.", source=source)
    check_gguf(file)
    kind = GGUFReader(file).fields.get("general.type")
    if kind is None or kind.contents() != "adapter":
        return GGUFForm(file)
    tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "base.gguf"
        write_model(base, model, "f16", tokenizer, (tokenizer.eos_token_id,), "base")
        return GGUFForm(model, file)


class GGUFForm:
    """A model that llama.cpp loads; an adapter in GGUF can be on top."""

    def __init__(self, file: Path, lora: Path | None = None) -> None:
        check_gguf(file)
        fields = GGUFReader(file).fields
        tokens = fields["tokenizer.ggml.tokens"]
        self.vocabulary = len(tokens.data)
        context = int(fields[f"{fields['general.architecture'].contents()}.context_length"].contents())
        self.kind = "gguf_" + LlamaFileType(int(fields["general.file_type"].contents())).name.partition("_")[2].lower()
        ends = {i for key in STOPS if key in fields for i in [int(fields[key].contents())]}
        kinds = fields["tokenizer.ggml.token_type"]
        for i in range(self.vocabulary):
            is_control = int(kinds.parts[kinds.data[i]][0]) == 3
            if is_control and bytes(tokens.parts[tokens.data[i]]).decode("utf-8", "replace") in END_OF_TURN:
                ends.add(i)
        self.stop_ids = tuple(sorted(ends))
        self.engine = LlamaCpp(file, min(context, MAX_CONTEXT), lora)

    def log_probs(self, rows: Sequence[AnswerRow]) -> list[Tensor]:
        """[A, V] of each row."""
        return [self.engine.log_probs(x.ids[:-1], len(x.prompt_ids) - 1, self.vocabulary) for x in rows]

    def template_ids(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> list[int] | None:
        """By the template in the file, rendered and tokenized by llama.cpp."""
        return self.engine.tokenize(self.engine.apply_template(messages, tools), add_special=True)

    def close(self) -> None:
        """Free the model and the port."""
        self.engine.close()
