"""The Hugging Face Trainer's side of the trainer suite: what an experienced user writes, following its example scripts.

    python -m bench.trainer.trainer_side '{"task": "seq2seq", "model": FOLDER, "train": FILE, ...}'     prints JSON

Rows are encoded first; each batch is padded to its longest row (dynamic padding); everything else is the Trainer's
default, or set by the suite to be equal on both sides. With "grouped", batches hold rows of similar length
(train_sampling_strategy="group_by_length"). The time is from on_train_begin to on_train_end. Held-out rows are predicted
afterwards by a plain loop, in their order.

    classification       run_glue.py                  AutoModelForSequenceClassification
    tagging              run_ner.py                   a word's tag is at its first token
    question answering   run_qa.py                    windows by stride, and its post-processing with "no answer"
    seq2seq              run_summarization.py         Seq2SeqTrainer, DataCollatorForSeq2Seq, greedy decoding
    sft                  run_clm.py, loss on the answer only, rows padded
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from bench.trainer.tasks import BEFORE, DOC_STRIDE, MAX_NEW_TOKENS, RANK, Fraction, read_lines

IGNORE = -100
EVAL_BATCH = 64  # rows per batch for held-out rows
N_BEST, MAX_ANSWER_LENGTH = 20, 30  # run_qa.py's n_best_size and max_answer_length
Job = dict[str, Any]
Rows = list[dict]
Pair = tuple[Any, Any]


@dataclass
class TaskSetup:
    """A task ready for training."""

    model: Any
    collate: Any
    train: Rows
    predict: Callable[[int], tuple[list[Fraction], list[Pair]]]
    """The first n held-out rows -> their losses as (nats, denominator), and (prediction, reference) of each."""
    classes: tuple[type, type] = (Trainer, TrainingArguments)


def outputs(model: Any, collate: Any, rows: Rows) -> Iterator[tuple[Any, Any]]:
    """(batch, the model's output), without dropout."""
    model.eval()
    for start in range(0, len(rows), EVAL_BATCH):
        batch = collate(rows[start : start + EVAL_BATCH])
        with torch.no_grad():
            yield batch, model(**batch)


def token_losses(logits: Tensor, labels: Tensor) -> list[Fraction]:
    """For each row: the sum over its supervised tokens, and their number."""
    losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORE)
    return list(zip(losses.sum(1).tolist(), (labels != IGNORE).sum(1).tolist()))


def classification(job: Job, tokenizer: Any, train: Rows, test: Rows) -> TaskSetup:
    """The class of a text."""
    classes = sorted({x["label"] for x in train})
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=len(classes), dtype=torch.float32)
    collate = DataCollatorWithPadding(tokenizer)

    def encoded(rows: Rows) -> Rows:
        ids = tokenizer([x["text"] for x in rows], truncation=True, max_length=job["max_length"]).input_ids
        return [{"input_ids": x, "labels": classes.index(row["label"])} for x, row in zip(ids, rows)]

    def predict(limit: int) -> tuple[list[Fraction], list[Pair]]:
        losses, predictions = [], []
        for batch, out in outputs(model, collate, encoded(test[:limit])):
            losses += cross_entropy(out.logits, batch["labels"], reduction="none").tolist()
            predictions += [classes[i] for i in out.logits.argmax(-1).tolist()]
        return [(x, 1) for x in losses], [(predicted, x["label"]) for predicted, x in zip(predictions, test)]

    return TaskSetup(model, collate, encoded(train), predict)


def tagging(job: Job, tokenizer: Any, train: Rows, test: Rows) -> TaskSetup:
    """A tag for each word."""
    tags = sorted({tag for x in train for tag in x["tags"]})
    names = dict(enumerate(tags))
    model = AutoModelForTokenClassification.from_pretrained(
        job["model"], num_labels=len(tags), id2label=names, label2id={x: i for i, x in names.items()}, dtype=torch.float32
    )
    collate = DataCollatorForTokenClassification(tokenizer)

    def encoded(rows: Rows) -> Rows:
        tokens = [x["tokens"] for x in rows]
        ids = tokenizer(tokens, is_split_into_words=True, truncation=True, max_length=job["max_length"])
        features = []
        for i, x in enumerate(rows):
            word_ids = ids.word_ids(i)
            is_first = [word is not None and word != before for word, before in zip(word_ids, [None, *word_ids])]
            labels = [tags.index(x["tags"][word]) if first else IGNORE for word, first in zip(word_ids, is_first)]
            features.append({"input_ids": ids.input_ids[i], "labels": labels})
        return features

    def predict(limit: int) -> tuple[list[Fraction], list[Pair]]:
        losses, predictions = [], []
        for batch, out in outputs(model, collate, encoded(test[:limit])):
            losses += token_losses(out.logits, batch["labels"])
            for best, labels in zip(out.logits.argmax(-1), batch["labels"]):
                predictions.append([tags[i] for i in best[labels != IGNORE].tolist()])
        return losses, [(predicted, x["tags"]) for predicted, x in zip(predictions, test)]

    return TaskSetup(model, collate, encoded(train), predict)


def question_answering(job: Job, tokenizer: Any, train: Rows, test: Rows) -> TaskSetup:
    """The span of a text that answers a question, or none."""
    model = AutoModelForQuestionAnswering.from_pretrained(job["model"], dtype=torch.float32)
    collate = DataCollatorWithPadding(tokenizer)

    def predict(limit: int) -> tuple[list[Fraction], list[Pair]]:
        features, positions = windows(tokenizer, test[:limit], job["max_length"])
        losses, scores = [], []
        for batch, out in outputs(model, collate, features):
            starts = cross_entropy(out.start_logits, batch["start_positions"], reduction="none")
            ends = cross_entropy(out.end_logits, batch["end_positions"], reduction="none")
            losses += (starts + ends).tolist()
            scores += zip(out.start_logits.tolist(), out.end_logits.tolist())
        by_row = defaultdict(list)
        for (number, offsets), (starts, ends) in zip(positions, scores):
            by_row[number].append((offsets, starts, ends))
        pairs = [(best_span(by_row[i], test[i]["context"]), test[i]["answers"]["text"]) for i in sorted(by_row)]
        return [(x, 1) for x in losses], pairs

    return TaskSetup(model, collate, windows(tokenizer, train, job["max_length"])[0], predict)


def windows(tokenizer: Any, rows: Rows, max_length: int) -> tuple[Rows, list[tuple[int, list]]]:
    """run_qa.py's features: windows over each text after the question; an answer that is not entirely in a window is at
    [CLS].

    Returns:
        The features; and for each, its row's number and its tokens' character offsets in the text (None: not in the text).
    """
    ids = tokenizer(
        [x["question"] for x in rows],
        [x["context"] for x in rows],
        truncation="only_second",
        max_length=max_length,
        stride=DOC_STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    features, positions = [], []
    for i, number in enumerate(ids["overflow_to_sample_mapping"]):
        answers, sequence = rows[number]["answers"], ids.sequence_ids(i)
        offsets: list[Any] = [offset if s == 1 else None for offset, s in zip(ids["offset_mapping"][i], sequence)]
        text = [t for t, s in enumerate(sequence) if s == 1]
        first = last = 0
        if answers["text"]:
            begin, end = answers["answer_start"][0], answers["answer_start"][0] + len(answers["text"][0])
            if offsets[text[0]][0] <= begin and offsets[text[-1]][1] >= end:
                first = max(t for t in text if offsets[t][0] <= begin)
                last = min(t for t in text if offsets[t][1] >= end)
        inputs = {key: ids[key][i] for key in ("input_ids", "token_type_ids", "attention_mask")}
        features.append({**inputs, "start_positions": first, "end_positions": last})
        positions.append((number, offsets))
    return features, positions


def best_span(scored: Sequence[tuple[list, list[float], list[float]]], context: str) -> str:
    """The best span of a text's windows, or "" if "no answer" scores higher.

    Args:
        scored: (character offsets of the tokens, start scores, end scores) of each window.
    """
    no_answer = min(starts[0] + ends[0] for _, starts, ends in scored)
    spans = []
    for offsets, starts, ends in scored:
        tops = [sorted(range(len(offsets)), key=lambda t, x=x: -x[t])[:N_BEST] for x in (starts, ends)]
        inside = [[t for t in top if offsets[t] is not None] for top in tops]
        pairs = [(a, b) for a in inside[0] for b in inside[1] if a <= b < a + MAX_ANSWER_LENGTH]
        spans += [(starts[a] + ends[b], context[offsets[a][0] : offsets[b][1]]) for a, b in pairs]
    score, text = max(spans, default=(no_answer, ""))
    return "" if no_answer > score else text


def seq2seq(job: Job, tokenizer: Any, train: Rows, test: Rows) -> TaskSetup:
    """A text rewritten as another text."""
    model = AutoModelForSeq2SeqLM.from_pretrained(job["model"], dtype=torch.float32)
    collate = DataCollatorForSeq2Seq(tokenizer, model)

    def encoded(rows: Rows) -> Rows:
        truncation = {"truncation": True, "max_length": job["max_length"]}
        ids = tokenizer([x["source"] for x in rows], text_target=[x["target"] for x in rows], **truncation)
        return [{"input_ids": a, "labels": b} for a, b in zip(ids["input_ids"], ids["labels"])]

    def predict(limit: int) -> tuple[list[Fraction], list[Pair]]:
        losses, predictions = [], []
        for batch, out in outputs(model, collate, encoded(test[:limit])):
            losses += token_losses(out.logits, batch["labels"])
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
            generated = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            predictions += tokenizer.batch_decode(generated, skip_special_tokens=True)
        return losses, [(predicted.strip(), x["target"]) for predicted, x in zip(predictions, test)]

    return TaskSetup(model, collate, encoded(train), predict, (Seq2SeqTrainer, Seq2SeqTrainingArguments))


def sft(job: Job, tokenizer: Any, train: Rows, test: Rows) -> TaskSetup:
    """An answer to a message; loss on the answer only."""
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    collate = DataCollatorForSeq2Seq(tokenizer)

    def encoded(rows: Rows) -> Rows:
        features = []
        for x in rows:
            ids, prompt = (
                tokenizer.apply_chat_template(messages, return_dict=False, add_generation_prompt=is_prompt)
                for messages, is_prompt in ((x["messages"], False), (x["messages"][:-1], True))
            )
            end = len(ids) - ids[::-1].index(tokenizer.eos_token_id)  # without the line break after it
            features.append({"input_ids": ids[:end], "labels": [IGNORE] * len(prompt) + ids[len(prompt) : end]})
        return features

    def predict(limit: int) -> tuple[list[Fraction], list[Pair]]:
        losses = []
        for row in encoded(test[:limit]):
            for batch, out in outputs(model, collate, [row]):
                losses += token_losses(out.logits[:, :-1], batch["labels"][:, 1:])
        return losses, []

    return TaskSetup(model, collate, encoded(train), predict)


def with_method(model: Any, method: str, num_layers: int) -> Any:
    """The model with only the method's weights trainable."""
    if method == "lora":
        kind = "SEQ_CLS" if hasattr(model, "classifier") else "CAUSAL_LM"
        return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type=kind))
    if method == "freeze":
        inner = model.base_model
        layers = inner.encoder.layer if hasattr(inner, "encoder") else inner.layers
        frozen = [*inner.embeddings.parameters()] if hasattr(inner, "embeddings") else [*inner.embed_tokens.parameters()]
        for weight in [*frozen, *(p for layer in layers[:-num_layers] for p in layer.parameters())]:
            weight.requires_grad_(False)
    return model


SETUPS = {
    "classification": classification,
    "tagging": tagging,
    "question answering": question_answering,
    "seq2seq": seq2seq,
    "sft": sft,
}


class TrainingTimer(TrainerCallback):
    """Seconds from the start of training to its end."""

    started = seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def run_side(job: Job) -> dict:
    """One training."""
    torch.set_num_threads(job["threads"])
    set_seed(job["seed"])
    train, test = (read_lines(Path(job[name])) for name in ("train", "test"))
    setup = SETUPS[job["task"].partition(",")[0]](job, AutoTokenizer.from_pretrained(job["model"]), train, test)
    (before, _), timer = setup.predict(BEFORE), TrainingTimer()
    trainer_class, arguments_class = setup.classes
    with tempfile.TemporaryDirectory() as folder:
        arguments = arguments_class(
            output_dir=folder,
            num_train_epochs=job["epochs"],
            per_device_train_batch_size=job["batch_size"],
            learning_rate=job["learning_rate"],
            lr_scheduler_type="linear",
            max_grad_norm=1.0,
            seed=job["seed"],
            train_sampling_strategy="group_by_length" if job["grouped"] else "random",
            use_cpu=True,
            bf16=job["precision"] == "bf16",
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = trainer_class(
            model=with_method(setup.model, job["method"], job["num_layers"]),
            args=arguments,
            data_collator=setup.collate,
            train_dataset=setup.train,
            callbacks=[timer],
        )
        trainer.train()
    losses, predictions = setup.predict(len(test))
    return {
        "seconds": timer.seconds,
        "steps": trainer.state.global_step,
        "before": before,
        "losses": losses,
        "predictions": predictions,
    }


if __name__ == "__main__":
    out, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(run_side(json.loads(sys.argv[1]))), file=out)
