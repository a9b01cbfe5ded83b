"""Take an exam: prompts with solved items that all share, the options' log-probabilities or a generated answer, a score.

Every answer is kept in the cache as soon as it is known, so an interrupted exam goes on where it was.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from weitiao.core.engine import SamplingParams
from weitiao.core.exam import Exam
from weitiao.core.example import Turn
from weitiao.core.generation import decoded, generate
from weitiao.core.messages import Message
from weitiao.core.option_scores import score_options
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.evaluate.examination.cache import ExamCache, cache_key
from weitiao.evaluate.examination.continuations import Prompt, encode_prompt, encode_text
from weitiao.evaluate.examination.items import LETTERS, ExamItem, ItemMaker, PreparedExam
from weitiao.evaluate.examination.result import ExamResult, ItemResult, exam_result

SCORED_AT_ONCE, GENERATED_AT_ONCE = 128, 64  # items between two writes of the cache
Progress = Callable[[Sequence[Any], Any], Any]


def take_exam(
    model: TrainableModel,
    prepared: PreparedExam,
    max_length: int | None,
    cache: ExamCache,
    progress: Progress = lambda x, _: x,
    label: Message | str = "",
) -> ExamResult:
    """The model's result. Its mode and the random generators stay unchanged.

    Args:
        max_length: the model's context in tokens; longer items are counted, and not asked.
    """
    exam, items = prepared.exam, prepared.items
    prompts = _prompts(model.processor, prepared)
    limit = None if max_length is None else max_length - len(model.attachment.virtual_tokens())
    room = exam.max_new_tokens if exam.scoring == "generation" else 0
    fits = [limit is None or x.length + room <= limit for x in prompts]
    asked = [(item, prompt) for item, prompt, fit in zip(items, prompts, fits) if fit]
    answer = _generated if exam.scoring == "generation" else _chosen
    results = answer(model, exam, asked, cache, progress, label)
    return exam_result(exam, items, results, [item.id for item, fit in zip(items, fits) if not fit])


def _prompts(processor: Processor, prepared: PreparedExam) -> list[Prompt]:
    exam = prepared.exam
    if exam.apply_chat_template:
        return [_chat_prompt(processor, prepared, item) for item in prepared.items]
    prefixes = prepared.prefixes()
    if exam.scoring == "generation":
        return [Prompt(tuple(encode_text(processor, prefixes[x.group] + x.question)), ((0,),)) for x in prepared.items]
    return [
        encode_prompt(processor, prefixes[x.group] + x.question, [exam.delimiter + option for option in x.options])
        for x in prepared.items
    ]


def _chat_prompt(processor: Processor, prepared: PreparedExam, item: ExamItem) -> Prompt:
    """The instruction as a system message, the solved items as turns."""
    instruction = ItemMaker(prepared.exam).instruction(item).strip()
    turns = [Turn("system", instruction)] if instruction else []
    for x in prepared.examples.get(item.group, ()):
        turns += [Turn("user", x.question), Turn("assistant", x.solved)]
    ids = processor.prompt((*turns, Turn("user", item.question)))
    return Prompt(tuple(ids), tuple(tuple(processor.encode_with_offsets(x)[0]) for x in item.options) or ((0,),))


def _chosen(
    model: TrainableModel,
    exam: Exam,
    asked: Sequence[tuple[ExamItem, Prompt]],
    cache: ExamCache,
    progress: Progress,
    label: Message | str,
) -> list[ItemResult]:
    """By log-probability."""
    keys = [cache_key("logprobs", prompt.ids, prompt.continuations) for _, prompt in asked]
    missing = [i for i, key in enumerate(keys) if cache.get(key) is None]
    for part in progress(_parts(missing, SCORED_AT_ONCE), label):
        prompts = [asked[i][1] for i in part]
        for i, scores in zip(part, score_options(model, [x.ids for x in prompts], [x.continuations for x in prompts])):
            cache.add(keys[i], scores.log_probs)
    return [_choice(exam, item, prompt, cache.get(key)) for (item, prompt), key in zip(asked, keys)]


def _choice(exam: Exam, item: ExamItem, prompt: Prompt, logprobs: Sequence[float]) -> ItemResult:
    lengths = tuple(map(len, prompt.continuations))
    sizes: Sequence[float] = {
        "none": [1.0] * len(lengths),
        "characters": [len(x) for x in item.options],
        "bytes": [len(x.encode()) for x in item.options],
        "tokens": lengths,
    }[exam.normalization]
    chosen = max(range(len(lengths)), key=lambda k: logprobs[k] / sizes[k])
    return ItemResult(item.id, chosen, item.solution, chosen == item.solution, tuple(logprobs), lengths)


def _generated(
    model: TrainableModel,
    exam: Exam,
    asked: Sequence[tuple[ExamItem, Prompt]],
    cache: ExamCache,
    progress: Progress,
    label: Message | str,
) -> list[ItemResult]:
    """By what is read from the model's answer."""
    stop = tuple(x for x in (exam.separator,) if x.strip("\n ") or len(x) > 1)
    sampling = SamplingParams(max_new_tokens=exam.max_new_tokens, stop=stop)
    keys = [cache_key("generated", prompt.ids, exam.max_new_tokens, stop) for _, prompt in asked]
    missing = [i for i, key in enumerate(keys) if cache.get(key) is None]
    for part in progress(_parts(missing, GENERATED_AT_ONCE), label):
        answers = generate(model, [asked[i][1].ids for i in part], exam.max_new_tokens, sampling)
        for i, answer in zip(part, answers):
            cache.add(keys[i], str(decoded(model, answer)))
    return [read_answer(exam, item, cache.get(key)) for (item, _), key in zip(asked, keys)]


def _parts(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def read_answer(exam: Exam, item: ExamItem, text: str) -> ItemResult:
    """What a generated answer says: the text of an option or its letter; of a free answer, the solution's text.

    Case, width and punctuation around it do not count.
    """
    found = re.search(exam.answer_pattern, text) if exam.answer_pattern else None
    if exam.answer_pattern:
        said = next((x for x in found.groups() if x is not None), "") if found else ""
    else:
        said = next(iter(text.strip().splitlines()), "")
    plain = _plain(said)
    if not item.options:
        return ItemResult(item.id, -1, -1, bool(plain) and plain == _plain(item.answer), text=text)
    chosen = next((i for i, x in enumerate(item.options) if _plain(x) == plain), -1)
    if chosen < 0 and len(plain) == 1 and plain.upper() in LETTERS[: len(item.options)]:
        chosen = LETTERS.index(plain.upper())
    return ItemResult(item.id, chosen, item.solution, chosen == item.solution, text=text)


def _plain(text: str) -> str:
    return re.sub(r"^\W+|\W+$", "", unicodedata.normalize("NFKC", text)).casefold()
