"""What the fork server imports before it forks: slow modules, and tables that transformers builds once."""

import contextlib
import importlib

MODULES = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
    "accelerate",
    "rich._emoji_codes",
    "rich._unicode_data.unicode17-0-0",
    "weitiao.cli.app",
    "weitiao.pipeline.inference",
    "weitiao.data.readers.csv",
    "weitiao.data.readers.jsonl",
    "weitiao.model.backbone.blocks.llama",
    "weitiao.model.methods.full",
    "weitiao.model.methods.lora",
    "weitiao.objective.objectives.sft",
    "weitiao.train.optimizers.adamw",
    "weitiao.train.steps.accumulate",
)

for name in MODULES:
    with contextlib.suppress(ImportError):  # a name of another version only costs time
        importlib.import_module(name)
with contextlib.suppress(Exception):
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
