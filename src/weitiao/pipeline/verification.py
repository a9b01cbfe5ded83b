"""Verify a form of a Run: is what is served the model that was trained? On the Run's own rows, held-out ones first."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weitiao.core.batch import AUDIO_PLACEHOLDER, IGNORE, Row
from weitiao.core.command import command
from weitiao.core.errors import DataError, InvalidValue, ModelError, RecipeError
from weitiao.core.example import Chat, SourcedExample, TextLabel, Turn
from weitiao.core.messages import Message
from weitiao.core.new_folder import refuse_unfinished
from weitiao.core.registry import find_module, names
from weitiao.core.reporter import Reporter
from weitiao.core.trainable_model import TrainableModel, evaluating
from weitiao.data.chat.messages import as_messages
from weitiao.data.chat.template import Template
from weitiao.data.prepare import Encoder, held_out_sources, read_held_out
from weitiao.data.read import read_sources
from weitiao.data.split import split
from weitiao.data.tokenization import ChatProcessor
from weitiao.deploy.merging.predictions import PlainFolder, PredictionReport, compare_predictions
from weitiao.deploy.merging.probe import PROBE
from weitiao.deploy.verification.endpoint import Endpoint
from weitiao.deploy.verification.endpoint_report import EndpointReport, compare_endpoint
from weitiao.deploy.verification.fidelity import AnswerRow, LogProbs
from weitiao.deploy.verification.transformers_form import answer_log_probs
from weitiao.deploy.verification.verify import Conversation, Form, Subject, VerificationReport, verify
from weitiao.model.backbone.plain_class import expected_outputs
from weitiao.model.loading.upcast import computing_in_fp32
from weitiao.model.loading.weights import stored_dtype
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.predict import RowPredictor
from weitiao.plan.resolve import resolve_rows

POSITIONS = 2000  # answer tokens that are compared, where the data have them
ANSWER_TOKENS = 256  # of one answer; the rest of a long one is not compared
READ_TOKENS = 4_000  # prompts included: on two cores 20 s for each form of a 135 M model
MAX_ROWS = 1000
CONVERSATIONS = 500
PREDICTIONS = 200  # rows of a model that predicts


def verify_run(
    target: str, source: str, reporter: Reporter, max_rows: int | None = None
) -> VerificationReport | PredictionReport:
    """Compare a folder, a file or a server with the Run that it was made of.

    Args:
        source: a merged folder, an adapter folder, an exported file.
        max_rows: rows of the Run that are compared; None: until about 2,000 answer tokens.

    Raises:
        ModelError: nothing here opens it.
    """
    with reporter.spin(Message("loading the model")):
        model = open_model(target, precision="fp32")
        if not model.objective.traits.generative:
            return verify_predictions(model, Path(source), reporter, max_rows)
        subject = subject_of(model, reporter, max_rows)
        form = open_form(source, model.assets.folder)
    try:
        report = verify(subject, form, source, track=reporter.track)
    finally:
        form.close()
    if Path(source).is_dir():
        report.write(Path(source))
    return report


def verify_predictions(model: Model, folder: Path, reporter: Reporter, max_rows: int | None) -> PredictionReport:
    """Compare what a merged folder predicts with what a Run with a head does.

    Raises:
        ModelError: it is no merged folder of such a Run.
    """
    form = model.objective.plain_form(model.assets.architecture.kind)
    if form is None or form.obstacle is not None or not (folder / "config.json").is_file():
        raise ModelError(
            "a run with objective {objective} is compared as a merged folder, and {folder} is none. Make it with "
            "`{command} merge RUN FOLDER`, which compares it, too.",
            objective=model.objective.name,
            folder=folder,
            command=command(),
        )
    rows = [torch.tensor([x]) for x in inputs_of(model, reporter, max_rows, RowPredictor.make(model).max_length)]
    rows = rows or [torch.tensor([model.assets.processor.text(PROBE)])]
    device = model.torch_model.device
    with torch.no_grad():
        expected = [expected_outputs(model.torch_model, form, model.model.heads, x.to(device)) for x in rows]
    dtype = stored_dtype(folder) or torch.float32
    written = PlainFolder(folder, form)
    return compare_predictions(form, expected, [written.outputs(x) for x in rows], folder, dtype)


def verify_endpoint(
    target: str, url: str, reporter: Reporter, model: str = "", key: str = "", max_rows: int | None = None
) -> EndpointReport:
    """Compare a served model with the Run.

    Args:
        url: of an OpenAI-compatible server; only its host is contacted.
        model: its name there.

    Raises:
        ModelError: nothing answers, it gives no log-probabilities, or the Run does not generate.
    """
    endpoint = Endpoint.open(url, model, key)
    with reporter.spin(Message("loading the model")):
        subject = subject_of(open_model(target, precision="fp32"), reporter, max_rows)
    return compare_endpoint(subject, endpoint, reporter.track)


def open_form(source: str, base: Path) -> Form:
    """Open whatever is there, by the first kind that recognizes it.

    Args:
        base: the folder of the Run's base model.

    Raises:
        ModelError: none does.
    """
    for place in (Path(source), Path(source).parent):
        refuse_unfinished(place)
    for name in names("opener"):
        module = find_module("opener", name)
        if module.recognizes(source):
            return module.open_form(source, base)
    raise ModelError(
        "{source} is nothing that can be compared: no merged model, adapter or exported file. Forms: {forms}.",
        source=source,
        forms=", ".join(names("opener")),
    )


# -- the Run's side ---------------------------------------------------------------------------------------------------


def subject_of(model: Model, reporter: Reporter, max_rows: int | None = None) -> Subject:
    """The tuned model with its rows, its conversations, and its base where that is at hand.

    Raises:
        ModelError: the model does not generate.
    """
    if not model.objective.traits.generative:
        raise ModelError(
            "a model trained with objective {objective} has no answers of tokens to compare: compare a merged folder.",
            objective=model.objective.name,
        )
    rows, conversations, rows_of = rows_to_compare(model, reporter, max_rows)
    attachment, processor = model.model.attachment, model.assets.processor
    can_switch_off = attachment.set_enabled is not None and bool(attachment.trainable)
    return Subject(
        log_probs_of(model.model),
        rows,
        processor.stop_ids,
        lambda ids: processor.decode(ids, skip_special_tokens=False),  # of the processor alone: it outlives the model
        conversations,
        log_probs_of(model.model, base=True) if can_switch_off else None,
        rows_of,
    )


def log_probs_of(model: TrainableModel, base: bool = False) -> LogProbs:
    """What a model predicts of an answer's tokens, by transformers' own forward pass, in fp32 however it is stored.

    Args:
        base: with the method switched off.
    """
    torch_model: Any = model.model

    @torch.no_grad()
    def log_probs(rows: Sequence[AnswerRow]) -> list[Tensor]:
        with evaluating(model), computing_in_fp32(torch_model):
            if not base:
                return answer_log_probs(torch_model, rows, model.attachment.virtual_tokens())
            with model.reference():
                return answer_log_probs(torch_model, rows)

    return log_probs


def rows_to_compare(
    model: Model, reporter: Reporter, max_rows: int | None
) -> tuple[list[AnswerRow], list[Conversation], Message]:
    """(rows with answers, conversations, where they come from): held-out rows, then training rows if those are too few.

    Where the Run's files are gone, or there is no Run, a probe text.
    """
    rows: list[AnswerRow] = []
    conversations: list[Conversation] = []
    counts: list[int] = []
    try:
        for examples in examples_of(model):
            before = len(rows)
            if not is_enough(rows, max_rows):
                rows += answers_of(encoded_rows(model, examples, reporter), rows, max_rows)
                counts.append(len(rows) - before)
            conversations += conversations_of(model, examples, CONVERSATIONS - len(conversations))
    except (DataError, RecipeError, OSError) as error:
        reporter.warn(Message("the run's rows cannot be read, so a probe text is compared: {error}", error=error))
    if not rows:
        probe = model.assets.processor.text(PROBE)
        return [AnswerRow(probe[:1], probe[1:])], conversations, Message("a probe text")
    held_out, training = (*counts, 0, 0)[:2]
    if not training:
        return rows, conversations, Message("held out")
    return rows, conversations, Message("{held:,} held out, {training:,} of training", held=held_out, training=training)


def examples_of(model: Model) -> Iterator[list[SourcedExample]]:
    """The Run's held-out examples, then its training examples."""
    recipe = model.recipe
    if recipe is None:
        return
    sources = held_out_sources(recipe)
    if sources is not None or recipe.validation:
        yield list(read_held_out(recipe, sources, model.training_columns).examples)
    else:
        yield []
    training = read_sources(recipe.data, recipe.objective, 1.0, model.training_columns).examples
    yield split(training, recipe.validation)[0] if isinstance(recipe.validation, float) else training


def inputs_of(model: Model, reporter: Reporter, max_rows: int | None, limit: int) -> list[list[int]]:
    """The ids of rows that a model with a head predicts: held-out ones, then training rows; [] where they are gone.

    Args:
        limit: tokens of a row; the rest is not read.
    """
    rows: list[list[int]] = []
    read = 0
    try:
        for x in (x.without_task for examples in examples_of(model) for x in examples):
            if len(rows) >= (max_rows or PREDICTIONS) or (max_rows is None and read >= READ_TOKENS):
                break
            if not isinstance(x.example, model.objective.traits.example_type):
                continue  # of another task
            try:
                ids = model.objective.encode_input(x.example, model.assets.processor)["input_ids"]
            except InvalidValue:  # nothing is masked in it
                ids = model.assets.processor.text(x.example.full_text)
            rows.append([int(token) for token in ids][:limit])
            read += len(rows[-1])
    except (DataError, RecipeError, OSError) as error:
        reporter.warn(Message("the run's rows cannot be read, so a probe text is compared: {error}", error=error))
    return [x for x in rows if x]


def encoded_rows(model: Model, examples: Sequence[SourcedExample], reporter: Reporter) -> Iterator[Row]:
    """Examples as the Run encoded them."""
    recipe, assets = model.recipe, model.assets
    if recipe is None or not examples:
        return
    limits = resolve_rows(recipe, model.objective, assets.max_length)
    encoder = Encoder(model.objective, assets.processor, assets.identity, limits.max_length, limits.overlong, reporter)
    rows = encoder.encode(list(examples[: 4 * MAX_ROWS])).rows
    for i in range(len(rows)):
        yield rows[i]


def answers_of(encoded: Iterator[Row], before: Sequence[AnswerRow], max_rows: int | None) -> list[AnswerRow]:
    """One row for each stretch of tokens that carried loss, until there are enough.

    Args:
        before: the rows that there are already.
    """
    rows: list[AnswerRow] = []
    for row in encoded:
        ids, labels = [int(x) for x in row["input_ids"]], [int(x) for x in row["labels"]]
        if ids and ids[0] == AUDIO_PLACEHOLDER:
            continue
        start = 0
        while start < len(ids):
            if labels[start] == IGNORE:
                start += 1
                continue
            end = next((t for t in range(start, len(ids)) if labels[t] == IGNORE), len(ids))
            rows.append(AnswerRow(ids[: start + 1], labels[start : min(end, start + ANSWER_TOKENS)]))
            if is_enough([*before, *rows], max_rows):
                return rows
            start = end
    return rows


def is_enough(rows: Sequence[AnswerRow], max_rows: int | None) -> bool:
    """Whether there are rows enough to compare."""
    if len(rows) >= (max_rows or MAX_ROWS):
        return True
    positions, read = sum(len(x.answer_ids) for x in rows), sum(len(x.prompt_ids) for x in rows)
    return max_rows is None and (positions >= POSITIONS or positions + read >= READ_TOKENS)


def conversations_of(model: Model, examples: Sequence[SourcedExample], limit: int) -> list[Conversation]:
    """The prompts of conversations, as messages and as the Run's ids; those that spell special tokens are left out.

    Dates that a template writes are today's on both sides.
    """
    processor, conversations = model.assets.processor, []
    if processor.template is None or model.assets.architecture.kind != "decoder" or model.assets.continues_text:
        return []
    today = with_date_of_today(model.assets.processor)
    for example in examples:
        if len(conversations) >= max(0, limit):
            break
        turns, tools = turns_of(model, example)
        if not turns or any(processor.contains_special_tokens(x.text) for x in turns):
            continue
        try:
            conversation = today.conversation(turns, tools)
            messages = as_messages(conversation.turns, conversation.form)
            ids = today.prompt(turns, tools)
        except (InvalidValue, DataError):
            continue
        conversations.append(Conversation(messages, ids, json.loads(tools) if tools else None))
    return conversations


def turns_of(model: Model, example: SourcedExample) -> tuple[Sequence[Turn], str]:
    """(what the model is asked, the tools); nothing where the example is no conversation."""
    x = example.without_task.example
    if isinstance(x, Chat):
        return x.prompt, x.tools
    if isinstance(x, TextLabel):
        return (Turn("user", x.text),), ""
    return (), ""


def with_date_of_today(processor: ChatProcessor) -> ChatProcessor:
    """The processor whose template writes the current date, as every other program's does."""
    template = processor.template
    assert template is not None
    return replace(processor, template=Template(template.text, template.special, datetime.now()))
