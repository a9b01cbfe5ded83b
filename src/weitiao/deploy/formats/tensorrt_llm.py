"""TensorRT-LLM: a folder that trtllm-serve reads, its options, and the command."""

import json
import shlex
from pathlib import Path
from typing import Any

from weitiao.core.messages import Message
from weitiao.deploy.export.format import ExportSource
from weitiao.deploy.export.gpu_format import GPUServerFormat
from weitiao.deploy.export.gpu_servers import TENSORRT_DECODERS, TENSORRT_MODULES, max_rank

OPTIONS = "llm_api_options.yaml"


class TensorRTLLM(GPUServerFormat):
    """A folder for TensorRT-LLM, merged or an adapter, with the command."""

    server = "TensorRT-LLM"
    architectures = TENSORRT_DECODERS
    not_run = Message(
        "TensorRT-LLM itself was not run (it needs an NVIDIA GPU): after it starts, ask it a few questions of your data"
    )

    def serve_folder(self, source: ExportSource, folder: Path) -> str:
        return f"trtllm-serve {shlex.quote(str(folder.resolve()))} --host 127.0.0.1"

    def serve_adapter(self, source: ExportSource, folder: Path, settings: dict[str, Any]) -> str:
        """An adapter is named in the server's file of options."""
        lora = {
            "lora_dir": [str(folder.resolve())],
            "max_lora_rank": max_rank(int(settings["r"])),
            "lora_target_modules": sorted({TENSORRT_MODULES[x.rpartition(".")[2]] for x in settings["target_modules"]}),
        }
        # JSON is YAML
        (folder / OPTIONS).write_text(json.dumps({"lora_config": lora}, indent=1) + "\n", encoding="utf-8")
        return (
            f"trtllm-serve {shlex.quote(str(source.base))} --host 127.0.0.1 "
            f"--extra_llm_api_options {shlex.quote(str((folder / OPTIONS).resolve()))}"
        )
