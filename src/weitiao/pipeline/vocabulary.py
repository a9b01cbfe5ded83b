"""The larger vocabulary of a run: learnt once, kept in the run's folder, and put under its method wherever it is opened.

RUN/tokenizer/     the extended tokenizer: every command that opens the run encodes with it
embeddings         rows for the new tokens, made again from the base's at each opening; the trained ones come from RUN/best
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weitiao.core.extended_tokenizer import FIRST_NEW, NUM_OWN, old_pieces
from weitiao.core.files import file_sha256
from weitiao.core.recipe import Recipe
from weitiao.core.run import TOKENIZER as FOLDER
from weitiao.model.adapters.new_rows import Init, add_rows
from weitiao.model.loading.load import load_tokenizer

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"


@dataclass(frozen=True)
class VocabularyExtension:
    """New tokens behind those of a base: the files of the tokenizer, and how their embeddings start."""

    folder: Path
    init: Init = "mean"
    seed: int = 0

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.folder)

    @property
    def identity(self) -> str:
        """Changes when the tokenizer does."""
        return file_sha256(self.folder / TOKENIZER)


@dataclass(frozen=True)
class NewTokens:
    """The new tokens of one extension, for the model below it."""

    first: int
    """The id of the first."""
    pieces: list[list[int]]
    """Of each new token the ids below that it is made of."""
    init: Init = "mean"
    seed: int = 0

    @classmethod
    def of(cls, extension: VocabularyExtension) -> "NewTokens":
        """Those that an extension's tokenizer says are its newest."""
        tokenizer: Any = extension.tokenizer
        first = int(tokenizer.init_kwargs[FIRST_NEW])
        return cls(first, old_pieces(tokenizer, first), extension.init, extension.seed)

    def add_to(self, model: PreTrainedModel) -> int:
        """Give a model rows for them; returns how many weights that added."""
        before = sum(x.numel() for x in model.parameters())
        add_rows(model, self.pieces, self.first, self.init, self.seed)
        return sum(x.numel() for x in model.parameters()) - before


def extension_of_run(folder: Path, recipe: Recipe) -> VocabularyExtension | None:
    """Of a run; None: it has its base's vocabulary."""
    if recipe.vocabulary is None:
        return None
    return VocabularyExtension(folder / FOLDER, recipe.vocabulary.init, recipe.seed)


def extension_of_adapter(folder: Path) -> VocabularyExtension | None:
    """Of an adapter folder with a tokenizer of its own that weitiao extended."""
    config = folder / CONFIG
    if not config.is_file() or not (folder / TOKENIZER).is_file():
        return None
    return VocabularyExtension(folder) if NUM_OWN in json.loads(config.read_text(encoding="utf-8")) else None


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's files; none of them is half written under its name."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    tokenizer.save_pretrained(temporary)
    temporary.replace(folder)
