"""PEFT: the adapter alone, for peft and every server that reads its format."""

from pathlib import Path

from weitiao.core.messages import Message
from weitiao.deploy.export.format import ExportSource, Format, Written, megabytes


class PEFT(Format):
    """The adapter alone, in PEFT's format."""

    def write(self, source: ExportSource, folder: Path) -> Written:
        """adapter_config.json, adapter_model.safetensors, the stop tokens and the template."""
        source.adapter(folder)
        size = megabytes(folder / "adapter_model.safetensors")
        note = Message(
            "{folder}: {megabytes:,.1f} MB, an adapter for {base}", folder=folder, megabytes=size, base=source.base
        )
        command = (
            f"peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(source.base)!r}), {str(folder)!r})"
        )
        generates = source.form is None and source.kind != "encoder"
        return Written([note], [command] if generates else [], form=folder if generates else None)
