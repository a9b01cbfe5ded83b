"""What the formats of servers for GPUs have in common: a merged folder or an adapter, checked, with the command."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from weitiao.core.messages import Message
from weitiao.deploy.export.format import ExportSource, Format, Written, megabytes, refuse_heads
from weitiao.deploy.export.gpu_servers import check_architecture, read_adapter_settings, write_folder
from weitiao.deploy.merging.merge import SHARD, check_shard_size


class GPUServerFormat(Format):
    """A folder for a server, merged or an adapter; the server itself is not run here."""

    server: ClassVar[str]
    """Its name."""
    architectures: ClassVar[frozenset[str]]
    """Architectures in its list."""
    not_run: ClassVar[Message]
    """What the user must still try."""

    type: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """What a merged model is stored in; auto: as its base."""
    adapter: bool = False
    """The adapter alone, on its base; several can share one."""
    max_shard_size: str = SHARD
    """Of one file of a merged model's weights."""

    def write(self, source: ExportSource, folder: Path) -> Written:
        """The folder, and the command that serves it."""
        refuse_heads(source, self.server)
        check_shard_size(self.max_shard_size)
        check = check_architecture(source.base, self.architectures, self.server)
        if self.adapter:
            settings = read_adapter_settings(source.adapter(folder), self.server)
            fields = {"folder": folder, "rank": settings["r"], "base": source.base}
            note = Message("{folder}: an adapter of rank {rank} for {base}", **fields)
            command = self.serve_adapter(source, folder, settings)
        else:
            write_folder(source, folder, self.type, self.max_shard_size)
            size = megabytes(*folder.glob("*.safetensors"))
            note = Message("{folder}: {megabytes:,.1f} MB, merged", folder=folder, megabytes=size)
            command = self.serve_folder(source, folder)
        return Written([note], [command], form=folder, obstacle=self.not_run, checks=[check])

    def serve_folder(self, source: ExportSource, folder: Path) -> str:
        """The command for a merged model."""
        raise NotImplementedError

    def serve_adapter(self, source: ExportSource, folder: Path, settings: dict[str, Any]) -> str:
        """The command for an adapter, and the files that it needs.

        Args:
            settings: adapter_config.json.
        """
        raise NotImplementedError
