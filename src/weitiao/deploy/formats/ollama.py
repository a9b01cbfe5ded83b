"""Ollama: a GGUF file and a Modelfile with the trained template, every stop token and the settings."""

from pathlib import Path
from typing import Any

from pydantic import Field
from transformers import AutoConfig

from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.deploy.export.format import ExportSource, Format, Written, refuse_heads
from weitiao.deploy.export.gguf.adapter import write_adapter
from weitiao.deploy.export.gguf.read_back import gguf_form, size_note
from weitiao.deploy.export.gguf.write import write_model
from weitiao.deploy.export.ollama.modelfile import PLAIN, RAW, GoTemplate, prove, write_modelfile

DEFAULT_CONTEXT = 4096  # tokens; Ollama keeps the whole cache in memory


class Ollama(Format):
    """A GGUF file with a Modelfile for Ollama."""

    type: str = "q8_0"
    """As of GGUF."""
    adapter: bool = False
    """The base and the adapter as two files (ADAPTER), instead of one merged file."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy, as weitiao measures."""
    num_ctx: int = Field(default=0, ge=0)
    """The most tokens of a conversation; 0: the model's own length, at most 4,096."""
    raw: bool = False
    """Without a template, where none is proven: the program that asks must send whole prompts."""

    def write(self, source: ExportSource, folder: Path) -> Written:
        """The model file, and the Modelfile beside it."""
        refuse_heads(source, "Ollama")
        proven = self._template(source)
        folder.mkdir(parents=True, exist_ok=True)
        model = source.base if self.adapter else source.folder
        file = folder / f"{'base' if self.adapter else source.name}-{self.type}.gguf"
        plan = write_model(model, file, self.type, source.tokenizer, source.stop_ids, source.name, source.progress)
        written = Written([size_note(file, plan)])
        adapter = folder / f"{source.name}-adapter.gguf" if self.adapter else None
        if adapter is None:
            gguf_form(file, model, written)
        else:
            write_adapter(source.adapter(folder / "peft"), source.base, adapter, source.name)
            written.form = adapter
        self._write_modelfile(source, folder, file, adapter, proven, written)
        return written

    def _template(self, source: ExportSource) -> GoTemplate:
        """The template in Go's language.

        Raises:
            ModelError: none is proven.
        """
        if source.render is None:
            return GoTemplate("plain", PLAIN, "", False)
        proven = prove(source.render, bos_of(source.tokenizer))
        if proven is not None:
            return proven
        if self.raw:
            return GoTemplate("raw", RAW, "", False)
        raise ModelError(
            "Ollama: no Go template is proven to write what the chat template of {name} writes, and another one would give "
            "other answers. Serve it with llama-server --jinja (--format gguf), or take --raw and send whole prompts.",
            name=source.name,
        )

    def _write_modelfile(
        self,
        source: ExportSource,
        folder: Path,
        file: Path,
        adapter: Path | None,
        proven: GoTemplate,
        written: Written,
    ) -> None:
        length = (
            AutoConfig.from_pretrained(source.base, local_files_only=True, trust_remote_code=False)
            .get_text_config()
            .max_position_embeddings
        )
        stops = source.tokenizer.convert_ids_to_tokens(list(source.stop_ids))
        parameters = {
            "temperature": self.temperature,
            "repeat_penalty": 1.0,
            "num_ctx": self.num_ctx or min(length, DEFAULT_CONTEXT),
        }
        system = source.system or proven.system
        text = write_modelfile(
            file.name, proven.text, stops, system, parameters, adapter.name if adapter is not None else ""
        )
        (folder / "Modelfile").write_text(text, encoding="utf-8")
        written.commands = [f"ollama create {source.name} -f {folder / 'Modelfile'}", f"ollama run {source.name}"]
        if proven.name == "raw":
            written.notes.append(Message('Modelfile: no template is proven; send whole prompts with "raw": true'))
        elif proven.name == "plain":
            written.notes.append(Message("Modelfile: no turns; a prompt is the beginning of a text"))
        else:
            written.notes.append(
                Message(
                    "Modelfile: the template {template} writes the trained template's prompts to the letter, with "
                    "{n} stop tokens: {stops}",
                    template=proven.name,
                    n=len(stops),
                    stops=" / ".join(stops),
                )
            )
        written.checks.append(Message("ollama itself was not run: the GGUF file was opened by llama.cpp, which it uses"))


def bos_of(tokenizer: Any) -> str:
    """The text that a server writes before a prompt by itself; "": nothing."""
    ids = tokenizer("a").input_ids
    first = getattr(tokenizer, "bos_token_id", None)
    return str(getattr(tokenizer, "bos_token", "")) if first is not None and ids[:1] == [first] else ""
