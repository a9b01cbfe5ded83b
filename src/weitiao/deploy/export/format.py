"""What a format is given, what it writes, and what it says of it; one file a format in deploy/formats/."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.core.plain_form import PlainForm
from weitiao.core.registry import Component
from weitiao.deploy.merging.merge import SHARD

Progress = Callable[[Sequence[str], str], Iterable[str]]


@dataclass
class ExportSource:
    """What is exported: a model as plain transformers has it, and what only the Run knows of it."""

    name: str
    """Of the model, as servers list it."""
    base: Path
    """The folder of the base model."""
    tokenizer: Any
    stop_ids: tuple[int, ...]
    """Tokens that end an answer; the first ends a turn."""
    kind: str
    """decoder, encoder or encoder_decoder."""
    merge: Callable[[str, str], Path]
    """(dtype: fp32, bf16, fp16 or auto, as the base; the largest file of weights) -> a folder that plain transformers
    opens, which is deleted afterwards. A base or a merged model is where it is."""
    write_adapter: Callable[[Path], Message | None]
    """Write an adapter in PEFT's format; why there is none."""
    modality: str = "text"
    form: PlainForm | None = None
    """The head, as other libraries have it; None: it generates."""
    rows: Sequence[Sequence[int]] = ()
    """Inputs of real rows, as token ids."""
    system: str = ""
    """The system message that all training rows had; "": none, or several."""
    render: Callable[[Sequence[tuple[str, str]]], str] | None = None
    """(role, content) ... -> the prompt by the chat template it was trained with; InvalidValue: the template rejects them.
    None: it has no template."""
    progress: Progress = lambda names, label: names

    @cached_property
    def folder(self) -> Path:
        """The merged model in fp32."""
        return self.merge("fp32", SHARD)

    def adapter(self, folder: Path) -> Path:
        """The adapter in PEFT's format, written into a folder.

        Raises:
            ModelError: there is none.
        """
        if obstacle := self.write_adapter(folder):
            raise ModelError("{name}: {reason}. Export the merged model instead.", name=self.name, reason=obstacle)
        return folder


@dataclass
class Written:
    """What a format wrote."""

    notes: list[Message] = field(default_factory=list)
    """Sizes, types, and what is different elsewhere."""
    commands: list[str] = field(default_factory=list)
    """How to run it."""
    form: Path | None = None
    """What is opened by its own engine and compared with the Run (deploy/openers/); None: nothing here opens it."""
    obstacle: Message | None = None
    """Why it was not opened, and how it can be."""
    checks: list[Message] = field(default_factory=list)
    """What the format compared itself, with figures."""


class Format(Component):
    """A way to leave weitiao: files that another program opens."""

    def write(self, source: ExportSource, folder: Path) -> Written:
        """Write the files into a new folder.

        Raises:
            ModelError: the other program cannot have this model.
            RecipeError: a setting is impossible, or a package is missing.
        """
        raise NotImplementedError


def refuse_heads(source: ExportSource, program: str) -> None:
    """Programs that generate text have no heads.

    Raises:
        ModelError: the model does not generate.
    """
    if source.form is not None or source.kind != "decoder" or source.modality != "text":
        raise ModelError(
            "{program} serves models that generate text by a decoder; {name} is none. Use --format onnx, or `merge`.",
            program=program,
            name=source.name,
        )


def megabytes(*files: Path) -> float:
    """Of files, together."""
    return sum(x.stat().st_size for x in files) / 1e6
