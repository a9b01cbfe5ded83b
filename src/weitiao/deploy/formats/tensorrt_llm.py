"""TensorRT-LLM: a folder that trtllm-serve reads, its options, and the command."""

import json
import shlex
from pathlib import Path
from typing import Literal

from weitiao.core.messages import Message
from weitiao.deploy.export.format import ExportSource, Format, Written, megabytes, refuse_heads
from weitiao.deploy.export.gpu_servers import (
    TENSORRT_DECODERS,
    TENSORRT_MODULES,
    check_architecture,
    max_rank,
    read_adapter_settings,
    write_folder,
)

OPTIONS = "llm_api_options.yaml"
NOT_RUN = Message(
    "TensorRT-LLM itself was not run (it needs an NVIDIA GPU): after it starts, ask it a few questions of your data"
)


class TensorRTLLM(Format):
    """A folder for TensorRT-LLM, merged or an adapter, with the command."""

    type: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """What a merged model is stored in; auto: as its base."""
    adapter: bool = False
    """The adapter alone, on its base."""

    def write(self, source: ExportSource, folder: Path) -> Written:
        """The folder, and for an adapter the options of the server."""
        refuse_heads(source, "TensorRT-LLM")
        check = check_architecture(source.base, TENSORRT_DECODERS, "TensorRT-LLM")
        written = Written(checks=[check], obstacle=NOT_RUN, form=folder)
        if self.adapter:
            settings = read_adapter_settings(source.adapter(folder), "TensorRT-LLM")
            modules = sorted({TENSORRT_MODULES[x.rpartition(".")[2]] for x in settings["target_modules"]})
            lora = {
                "lora_dir": [str(folder.resolve())],
                "max_lora_rank": max_rank(int(settings["r"])),
                "lora_target_modules": modules,
            }
            # JSON is YAML
            (folder / OPTIONS).write_text(json.dumps({"lora_config": lora}, indent=1) + "\n", encoding="utf-8")
            written.notes.append(
                Message(
                    "{folder}: an adapter of rank {rank} for {base}", folder=folder, rank=settings["r"], base=source.base
                )
            )
            written.commands = [
                f"trtllm-serve {shlex.quote(str(source.base))} --host 127.0.0.1 "
                f"--extra_llm_api_options {shlex.quote(str((folder / OPTIONS).resolve()))}"
            ]
            return written
        write_folder(source, folder, self.type)
        size = megabytes(*folder.glob("*.safetensors"))
        written.notes.append(Message("{folder}: {megabytes:,.1f} MB, merged", folder=folder, megabytes=size))
        written.commands = [f"trtllm-serve {shlex.quote(str(folder.resolve()))} --host 127.0.0.1"]
        return written
