"""Learning a run's larger vocabulary, from the training rows or from texts that the recipe names."""

from collections.abc import Sequence
from typing import Any

from weitiao.core.errors import DataError, ModelError, RecipeError
from weitiao.core.example import SourcedExample
from weitiao.core.finding import Decision
from weitiao.core.messages import Message
from weitiao.core.recipe import Recipe
from weitiao.core.recipe_sections import Source
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.vocabulary_section import Vocabulary
from weitiao.data.vocabulary_extension.extend import check_extension, extended, learn
from weitiao.data.vocabulary_extension.measure import rate
from weitiao.data.vocabulary_extension.sample import by_hash, up_to
from weitiao.data.vocabulary_extension.writing_scripts import main_script
from weitiao.pipeline.inspection_rows import batches, opened
from weitiao.pipeline.load import BaseAssets, open_base_assets
from weitiao.pipeline.trained import read_trained
from weitiao.pipeline.vocabulary import extension_of_run, save_tokenizer
from weitiao.train.distributed import Distributed

CHECKED = 2000  # rows on which the extended tokenizer is compared with the base's


def with_own_vocabulary(
    recipe: Recipe,
    assets: BaseAssets,
    training: Sequence[SourcedExample],
    held_out: Sequence[SourcedExample],
    run: Run,
    distributed: Distributed,
    reporter: Reporter,
) -> BaseAssets:
    """The assets with the tokenizer that the recipe asks for: learnt, or that of `init_from`; a resumed run has its own.

    Raises:
        ModelError: the base's tokenizer takes no merges, or the extended one is not sound.
        DataError: the texts do not give so many.
        RecipeError: `init_from` has another vocabulary.
    """
    extension = extension_of_run(run.folder, recipe)
    if recipe.vocabulary is None or extension is None:
        if recipe.init_from is not None:
            _same_as_source(recipe)
        return assets
    if assets.architecture.kind != "decoder":
        raise ModelError("vocabulary: new tokens are for decoders (models that generate text); the base is none")
    settings = recipe.vocabulary

    def write(is_main: bool) -> None:
        if not is_main or extension.folder.is_dir():
            return
        if recipe.init_from is not None:
            save_tokenizer(_same_as_source(recipe), extension.folder)
            return
        texts = _texts_of(settings.data) if settings.data else [x.example.full_text for x in _own(training, recipe)]
        save_tokenizer(_learnt(assets.tokenizer, texts, settings, run, reporter), extension.folder)

    with reporter.phase(run, "vocabulary", Message("learning {n:,} new tokens", n=settings.add)):
        distributed.main_first(write)
    literal = not all(x.parse_special_tokens for x in recipe.data)
    date = run.read("resolved.json", {}).get("date")
    new = open_base_assets(recipe.base, recipe.revision, recipe.chat_template, date, not literal, extension)
    rows = [x.example.full_text for x in (held_out or training)][:CHECKED]
    fault = next(check_extension(assets.tokenizer, new.tokenizer, rows), None)
    if fault is not None:
        raise ModelError("vocabulary: the extended tokenizer is not sound: {fault}", fault=fault)
    reporter.report(run, _decision(settings, assets.tokenizer, new.tokenizer, rows, bool(held_out)))
    return new


def _own(training: Sequence[SourcedExample], recipe: Recipe) -> list[SourcedExample]:
    """Without replay."""
    return [x for x in training if x.source < len(recipe.data)]


def _texts_of(sources: Sequence[Source]) -> list[str]:
    """The texts of all rows of files."""
    return [x.example.full_text for file in opened(sources) for rows in batches(file) for x in rows]


def _learnt(tokenizer: Any, texts: Sequence[str], settings: Vocabulary, run: Run, reporter: Reporter) -> Any:
    """The tokenizer with the merges that the recipe asks for."""
    result = learn(tokenizer, up_to(by_hash(texts)), settings.add, settings.scripts, settings.min_frequency)
    if len(result.merges) < settings.add:
        raise DataError(
            "vocabulary: {texts:,} texts give {n:,} new tokens, not {add:,}: no further pair of tokens occurs {times} "
            "times or more. Name more texts (vocabulary.data), or ask for fewer",
            texts=result.num_texts,
            n=len(result.merges),
            add=settings.add,
            times=settings.min_frequency,
        )
    reason = Message(
        "learnt from {characters:,} characters of {texts:,} texts ({scripts})",
        characters=result.num_characters,
        texts=result.num_texts,
        scripts=", ".join(result.scripts),
    )
    reporter.report(run, Decision("vocabulary.add", settings.add, reason))
    return extended(tokenizer, result.merges)


def _decision(settings: Vocabulary, base: Any, new: Any, rows: Sequence[str], are_held_out: bool) -> Decision:
    """What the new tokens make of rows that are written in the scripts they are for."""
    scripts = [x for x in settings.scripts or () if x]
    chosen = [x for x in rows if (main_script(x) in scripts if scripts else main_script(x) not in ("latin", "none"))]
    before, after = (rate(x, chosen or rows) for x in (base, new))
    fields = {"n": after.rows, "after": after.value, "before": before.value}
    reason = Message("tokens a character of {n:,} training rows: {after:.3f}, before {before:.3f}", **fields)
    if are_held_out:
        reason = Message("tokens a character of {n:,} held-out rows: {after:.3f}, before {before:.3f}", **fields)
    return Decision("vocabulary.tokens", len(new), reason)


def _same_as_source(recipe: Recipe) -> Any:
    """The tokenizer of the run that a warm start takes its weights from.

    Raises:
        RecipeError: one of the two runs extends the vocabulary, and the other does not, or in another way.
    """
    source = read_trained(str(recipe.init_from))
    if source is None or source.recipe is None:
        return None
    if source.recipe.vocabulary != recipe.vocabulary:
        raise RecipeError(
            "init_from: {folder} was trained with vocabulary {there}, this recipe has {here}; a warm start needs the same",
            folder=recipe.init_from,
            there=_written(source.recipe.vocabulary),
            here=_written(recipe.vocabulary),
        )
    return source.extension.tokenizer if source.extension else None


def _written(vocabulary: Vocabulary | None) -> str:
    return "null" if vocabulary is None else str(vocabulary.model_dump(mode="json", exclude_defaults=True))
