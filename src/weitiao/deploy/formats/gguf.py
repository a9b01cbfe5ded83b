"""GGUF: one file for llama.cpp and all that is built on it (Ollama, LM Studio, KoboldCpp, Jan ...)."""

from pathlib import Path

from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message
from weitiao.deploy.export.format import ExportSource, Format, Written, megabytes, refuse_heads
from weitiao.deploy.export.gguf.adapter import write_adapter
from weitiao.deploy.export.gguf.read_back import gguf_form, size_note
from weitiao.deploy.export.gguf.write import write_model


class GGUF(Format):
    """One file for llama.cpp, Ollama, LM Studio and the like."""

    type: str = "f16"
    """f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0; q6_k, q5_k_m, q4_k_m with weitiao[gguf-k]."""
    adapter: bool = False
    """The adapter alone, for llama-server --lora on a GGUF file of the base."""

    def write(self, source: ExportSource, folder: Path) -> Written:
        """A model file, or an adapter."""
        refuse_heads(source, "GGUF")
        folder.mkdir(parents=True, exist_ok=True)
        if self.adapter:
            return self._write_adapter(source, folder)
        file = folder / f"{source.name}-{self.type}.gguf"
        plan = write_model(source.folder, file, self.type, source.tokenizer, source.stop_ids, source.name, source.progress)
        written = Written([size_note(file, plan)], [f"llama-server -m {file} --jinja"])
        gguf_form(file, source.folder, written)
        return written

    def _write_adapter(self, source: ExportSource, folder: Path) -> Written:
        if self.type not in ("f16", "f32"):
            raise RecipeError("--adapter: an adapter is stored in F32; leave --type out")
        file = folder / f"{source.name}-adapter.gguf"
        changed = write_adapter(source.adapter(folder / "peft"), source.base, file, source.name)
        note = Message(
            "{file}: {megabytes:,.1f} MB, an adapter of {n:,} weights in F32",
            file=file,
            megabytes=megabytes(file),
            n=changed,
        )
        return Written([note], [f"llama-server -m BASE.gguf --lora {file} --jinja"], form=file)
