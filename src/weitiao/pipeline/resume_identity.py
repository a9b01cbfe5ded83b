"""What a resumed run must have in common with its checkpoints."""

import json
from pathlib import Path

from weitiao.core.files import file_sha256
from weitiao.core.recipe import Recipe
from weitiao.core.recipe_sections import Train, fixed_on_resume
from weitiao.data.read import files_of
from weitiao.data.unpacking import on_disk
from weitiao.plan.resolve import Resolved
from weitiao.train.checkpoints.checkpoint import FILE


def resume_identity(recipe: Recipe, resolved: Resolved, data: str, tokenizer: str, base: str) -> dict[str, str]:
    """What a resumed run must have in common with its checkpoints, or it would not be the same run.

    Args:
        data, tokenizer, base: fingerprints.
    """
    ((batch_key, batch),) = resolved.batch.items()
    train = recipe.train.model_dump(mode="json", include=fixed_on_resume(Train))
    return {
        **{f"{FILE}{file}": file_sha256(on_disk(file))[:12] for file in _data_files(recipe)},
        "data": data,
        **{f"cleaners of {x.path}": json.dumps([y.identity() for y in x.cleaners]) for x in recipe.data if x.cleaners},
        "tokenizer and template": tokenizer,
        f"train.{batch_key}": str(batch),
        "steps": str(resolved.steps),
        "base": base,
        "seed": str(recipe.seed),
        **({"mixing": json.dumps([resolved.mixing.actual, resolved.mixing.epoch_tokens])} if resolved.mixing else {}),
        "method": json.dumps(recipe.method.as_recipe()) + (recipe.init_from or ""),
        "objective": json.dumps([x.as_recipe() for x in (recipe.objective, *recipe.regularizers)]),
        **{f"train.{key}": json.dumps(value) for key, value in train.items()},
    }


def _data_files(recipe: Recipe) -> list[Path]:
    """Every file that the recipe reads rows from, each once."""
    validation = recipe.validation if isinstance(recipe.validation, tuple) else ()
    replay = (recipe.replay.source,) if recipe.replay else ()
    own = recipe.vocabulary.data if recipe.vocabulary else None
    later = (*(recipe.evaluate.data or ()), *(recipe.evaluate.corpus or ()), *replay, *(own or ()))
    sources = (*recipe.data, *validation, *later)
    return list(dict.fromkeys(file for x in sources for file in files_of(x)))
