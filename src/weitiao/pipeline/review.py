"""`weitiao review`: the answers of several models to the same prompts, made ready to be judged blindly; and what came out.

answers/NAME.jsonl  each answer as soon as it is known, by model, prompt and settings: an interrupted review goes on
review.json         all answers, once they are complete: they stay as they are while people judge
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from weitiao.core import event_log
from weitiao.core.engine import Request, SamplingParams
from weitiao.core.errors import DataError
from weitiao.core.files import write_text
from weitiao.core.messages import Message
from weitiao.core.reporter import Reporter
from weitiao.data.prompts import Prompt, read_prompts
from weitiao.evaluate.review.judge_model import JudgeResults, judge_results, read_verdicts
from weitiao.evaluate.review.review_results import ReviewResults, outcomes_of, preference_rows, review_results
from weitiao.evaluate.review.review_set import FILE, ReviewItem, ReviewSet
from weitiao.evaluate.review.votes import read_votes
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.model_identity import hashed, model_identity, name_targets

CHUNK = 32  # answers between two writes
FOLDER = "reviews"


@dataclass(frozen=True)
class ReviewOptions:
    """What is to be judged."""

    targets: Sequence[str]
    prompts: str
    """A file, as `weitiao generate --prompts` reads it."""
    sampling: SamplingParams = SamplingParams()
    out: str = ""
    """The folder; "": reviews/A-B."""


def prepare_review(options: ReviewOptions, reporter: Reporter) -> tuple[ReviewSet, Path]:
    """The review in its folder, with every answer generated; one that is there is taken up again.

    Raises:
        DataError: the folder holds another review, the prompts cannot be used, or all answers are the same.
        ModelError: a model does not generate.
    """
    targets = dict(name_targets(options.targets))
    folder = Path(options.out or f"{FOLDER}/{'-'.join(targets)[:100]}")
    prompts = read_prompts(options.prompts)
    messages = [tuple({"role": x.role, "content": x.content} for x in prompt.turns) for prompt in prompts]
    settings = json.loads(json.dumps({"sampling": asdict(options.sampling)}))
    if (folder / FILE).is_file():
        review = ReviewSet.read(folder)
        if (review.models, [x.messages for x in review.items], review.settings) != (targets, messages, settings):
            raise DataError(
                "{folder} holds a review of other models, prompts or settings: name another folder with --out",
                folder=folder,
            )
        return review, folder
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    answers = {name: _answers(name, target, prompts, options, folder, reporter) for name, target in targets.items()}
    items = tuple(ReviewItem(x, {name: answers[name][i] for name in targets}) for i, x in enumerate(messages))
    review = ReviewSet(targets, items, secrets.token_hex(16), settings)
    if not review.pairs:
        raise DataError("the models give the same answers to all {n:,} prompts: there is nothing to judge", n=len(prompts))
    review.write(folder)
    return review, folder


def _answers(
    name: str, target: str, prompts: Sequence[Prompt], options: ReviewOptions, folder: Path, reporter: Reporter
) -> list[str]:
    """A model's answers; those that are on the disk already are not generated again."""
    with reporter.spin(Message("loading the model")):
        model = open_model(target)
    model._refuse_without_generation()
    file, identity = folder / "answers" / f"{name}.jsonl", model_identity(model)
    settings = json.dumps(asdict(options.sampling), sort_keys=True)
    keys = [hashed(json.dumps([identity, settings, i, repr(x.turns)])) for i, x in enumerate(prompts)]
    known = {x["key"]: x for x in event_log.read(file) if {"key", "answer", "cut"} <= x.keys()}
    waiting = [i for i, key in enumerate(keys) if key not in known]
    chunks = [waiting[i : i + CHUNK] for i in range(0, len(waiting), CHUNK)]
    for chunk in reporter.track(chunks, Message("answers of {name}", name=name)):
        for i, (text, cut) in zip(chunk, _generated(model, [prompts[i] for i in chunk], options.sampling)):
            known[keys[i]] = {"key": keys[i], "answer": text, "cut": cut}
            event_log.append(file, known[keys[i]])
    if cut := sum(bool(known[key]["cut"]) for key in keys):
        text = Message("{n:,} of {total:,} answers of {name} were cut at {room:,} tokens (--max-new-tokens)")
        reporter.warn(Message(text, n=cut, total=len(keys), name=name, room=options.sampling.max_new_tokens))
    return [str(known[key]["answer"]) for key in keys]


def _generated(model: Model, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[tuple[str, bool]]:
    """(answer, whether it was cut off) of each prompt."""
    if model.assets.architecture.kind != "decoder":
        conversations = [[{"role": x.role, "content": x.content} for x in prompt.turns] for prompt in prompts]
        return [(str(x), False) for x in model.generate(conversations, sampling=sampling)]
    ids = [model.prompt(x.turns, tools=x.fields.get("tools")) for x in prompts]
    seeded = sampling if sampling.seed is not None else replace(sampling, seed=0)
    generations = model.answer([Request(x, seeded) for x in ids])
    return [(x.text.strip(), x.finish_reason == "length") for x in generations]


def read_results(folder: str | Path) -> tuple[ReviewResults, list[JudgeResults]]:
    """What people said, and what judge models said.

    Raises:
        DataError: the folder holds no review.
    """
    folder = Path(folder)
    review, votes = ReviewSet.read(folder), read_votes(folder)
    return review_results(review, votes), judge_results(review, read_verdicts(folder), outcomes_of(review, votes))


def export_pairs(folder: str | Path, file: str | Path = "") -> tuple[Path, int]:
    """Write preference rows as TRL reads them; returns the file and their number.

    Raises:
        DataError: the folder holds no review, or nobody has decided anything yet.
    """
    folder = Path(folder)
    rows: list[dict[str, Any]] = preference_rows(ReviewSet.read(folder), read_votes(folder))
    if not rows:
        raise DataError("{folder}: no vote is decided, so there are no preferences to write", folder=folder)
    target = Path(file) if file else folder / "pairs.jsonl"
    write_text(target, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in rows))
    return target, len(rows)
