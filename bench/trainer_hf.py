"""The Hugging Face Trainer's side of bench/trainer.py: what a good user of it writes, as its example scripts do.

    python bench/trainer_hf.py '{"task": "seq2seq", "model": FOLDER, "train": FILE, "test": FILE, ...}'     prints JSON

Rows are encoded before; each batch is padded to its longest row (dynamic padding); all else is the Trainer's default, or
set by bench/trainer.py to be the same on both sides. With "grouped", batches hold rows of like length
(train_sampling_strategy="group_by_length"). Seconds are those from on_train_begin to on_train_end. Held-out rows are
asked afterwards by a plain loop here, in their order.

    classification       run_glue.py                  AutoModelForSequenceClassification
    tagging              run_ner.py                   a word's tag stands at its first token
    question answering   run_qa.py                    windows by stride, and its post-processing with "no answer"
    seq2seq              run_summarization.py         Seq2SeqTrainer, DataCollatorForSeq2Seq, greedy decoding
    sft                  run_clm.py, the message not learnt, rows padded
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

from trainer_tasks import BEFORE, LONGEST, OVERLAP, RANK, Component, read_lines

NOT_LEARNT = -100
AT_ONCE = 64  # rows in a batch when held-out rows are asked
BEST, LONGEST_ANSWER = 20, 30  # run_qa.py's n_best_size and max_answer_length
Asked = dict[str, Any]
Rows = list[dict]
Pair = tuple[Any, Any]


@dataclass
class Side:
    """A task ready to be trained."""

    model: Any
    collate: Any
    train: Rows
    ask: Callable[[int], tuple[list[Component], list[Pair]]]
    """The first so many held-out rows -> their losses, as (nats, what they are divided by), and (said, right) of each."""
    kinds: tuple[type, type] = (Trainer, TrainingArguments)


def outputs(model: Any, collate: Any, rows: Rows) -> Iterator[tuple[Any, Any]]:
    """(batch, the model's output), without dropout."""
    model.eval()
    for at in range(0, len(rows), AT_ONCE):
        batch = collate(rows[at : at + AT_ONCE])
        with torch.no_grad():
            yield batch, model(**batch)


def token_losses(logits: Tensor, labels: Tensor) -> list[Component]:
    """Of each row: the sum over its learnt tokens, and how many."""
    each = cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=NOT_LEARNT)
    return list(zip(each.sum(1).tolist(), (labels != NOT_LEARNT).sum(1).tolist()))


def classification(asked: Asked, tokenizer: Any, train: Rows, test: Rows) -> Side:
    """The class of a text."""
    classes = sorted({x["label"] for x in train})
    model = AutoModelForSequenceClassification.from_pretrained(asked["model"], num_labels=len(classes), dtype=torch.float32)
    collate = DataCollatorWithPadding(tokenizer)

    def encoded(rows: Rows) -> Rows:
        ids = tokenizer([x["text"] for x in rows], truncation=True, max_length=asked["context"]).input_ids
        return [{"input_ids": x, "labels": classes.index(row["label"])} for x, row in zip(ids, rows)]

    def ask(many: int) -> tuple[list[Component], list[Pair]]:
        losses, said = [], []
        for batch, out in outputs(model, collate, encoded(test[:many])):
            losses += cross_entropy(out.logits, batch["labels"], reduction="none").tolist()
            said += [classes[i] for i in out.logits.argmax(-1).tolist()]
        return [(x, 1) for x in losses], [(mine, x["label"]) for mine, x in zip(said, test)]

    return Side(model, collate, encoded(train), ask)


def tagging(asked: Asked, tokenizer: Any, train: Rows, test: Rows) -> Side:
    """A tag for each word."""
    tags = sorted({tag for x in train for tag in x["tags"]})
    names = dict(enumerate(tags))
    model = AutoModelForTokenClassification.from_pretrained(
        asked["model"], num_labels=len(tags), id2label=names, label2id={x: i for i, x in names.items()}, dtype=torch.float32
    )
    collate = DataCollatorForTokenClassification(tokenizer)

    def encoded(rows: Rows) -> Rows:
        words = [x["tokens"] for x in rows]
        ids = tokenizer(words, is_split_into_words=True, truncation=True, max_length=asked["context"])
        made = []
        for i, x in enumerate(rows):
            at = ids.word_ids(i)
            firsts = [word is not None and word != before for word, before in zip(at, [None, *at])]
            labels = [tags.index(x["tags"][word]) if first else NOT_LEARNT for word, first in zip(at, firsts)]
            made.append({"input_ids": ids.input_ids[i], "labels": labels})
        return made

    def ask(many: int) -> tuple[list[Component], list[Pair]]:
        losses, said = [], []
        for batch, out in outputs(model, collate, encoded(test[:many])):
            losses += token_losses(out.logits, batch["labels"])
            for best, labels in zip(out.logits.argmax(-1), batch["labels"]):
                said.append([tags[i] for i in best[labels != NOT_LEARNT].tolist()])
        return losses, [(mine, x["tags"]) for mine, x in zip(said, test)]

    return Side(model, collate, encoded(train), ask)


def question_answering(asked: Asked, tokenizer: Any, train: Rows, test: Rows) -> Side:
    """The stretch of a text that answers a question, or none."""
    model = AutoModelForQuestionAnswering.from_pretrained(asked["model"], dtype=torch.float32)
    collate = DataCollatorWithPadding(tokenizer)

    def ask(many: int) -> tuple[list[Component], list[Pair]]:
        held, found = windows(tokenizer, test[:many], asked["context"])
        losses, scores = [], []
        for batch, out in outputs(model, collate, held):
            begins = cross_entropy(out.start_logits, batch["start_positions"], reduction="none")
            ends = cross_entropy(out.end_logits, batch["end_positions"], reduction="none")
            losses += (begins + ends).tolist()
            scores += zip(out.start_logits.tolist(), out.end_logits.tolist())
        mine = defaultdict(list)
        for (number, places), (begins, ends) in zip(found, scores):
            mine[number].append((places, begins, ends))
        said = [(span_of(mine[i], test[i]["context"]), test[i]["answers"]["text"]) for i in sorted(mine)]
        return [(x, 1) for x in losses], said

    return Side(model, collate, windows(tokenizer, train, asked["context"])[0], ask)


def windows(tokenizer: Any, rows: Rows, context: int) -> tuple[Rows, list[tuple[int, list]]]:
    """run_qa.py's features: windows over each text behind the question; an answer that a window does not hold whole is at
    [CLS].

    Returns:
        The features; and of each, its row's number and where its tokens stand in the text (None: not of the text).
    """
    ids = tokenizer(
        [x["question"] for x in rows],
        [x["context"] for x in rows],
        truncation="only_second",
        max_length=context,
        stride=OVERLAP,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    made, found = [], []
    for i, number in enumerate(ids["overflow_to_sample_mapping"]):
        answers, part = rows[number]["answers"], ids.sequence_ids(i)
        places: list[Any] = [place if of == 1 else None for place, of in zip(ids["offset_mapping"][i], part)]
        text = [t for t, of in enumerate(part) if of == 1]
        first = last = 0
        if answers["text"]:
            begin, end = answers["answer_start"][0], answers["answer_start"][0] + len(answers["text"][0])
            if places[text[0]][0] <= begin and places[text[-1]][1] >= end:
                first = max(t for t in text if places[t][0] <= begin)
                last = min(t for t in text if places[t][1] >= end)
        kept = {key: ids[key][i] for key in ("input_ids", "token_type_ids", "attention_mask")}
        made.append({**kept, "start_positions": first, "end_positions": last})
        found.append((number, places))
    return made, found


def span_of(scored: Sequence[tuple[list, list[float], list[float]]], context: str) -> str:
    """The best span of a text's windows, or "" where "no answer" is above it.

    Args:
        scored: (where tokens stand, scores to begin, scores to end) of each window.
    """
    none = min(begins[0] + ends[0] for _, begins, ends in scored)
    spans = []
    for places, begins, ends in scored:
        tops = [sorted(range(len(places)), key=lambda t, x=x: -x[t])[:BEST] for x in (begins, ends)]
        inside = [[t for t in top if places[t] is not None] for top in tops]
        pairs = [(a, b) for a in inside[0] for b in inside[1] if a <= b < a + LONGEST_ANSWER]
        spans += [(begins[a] + ends[b], context[places[a][0] : places[b][1]]) for a, b in pairs]
    score, words = max(spans, default=(none, ""))
    return "" if none > score else words


def seq2seq(asked: Asked, tokenizer: Any, train: Rows, test: Rows) -> Side:
    """Another text made of a text."""
    model = AutoModelForSeq2SeqLM.from_pretrained(asked["model"], dtype=torch.float32)
    collate = DataCollatorForSeq2Seq(tokenizer, model)

    def encoded(rows: Rows) -> Rows:
        cut = {"truncation": True, "max_length": asked["context"]}
        ids = tokenizer([x["source"] for x in rows], text_target=[x["target"] for x in rows], **cut)
        return [{"input_ids": a, "labels": b} for a, b in zip(ids["input_ids"], ids["labels"])]

    def ask(many: int) -> tuple[list[Component], list[Pair]]:
        losses, said = [], []
        for batch, out in outputs(model, collate, encoded(test[:many])):
            losses += token_losses(out.logits, batch["labels"])
            given = {key: batch[key] for key in ("input_ids", "attention_mask")}
            written = model.generate(**given, max_new_tokens=LONGEST, do_sample=False)
            said += tokenizer.batch_decode(written, skip_special_tokens=True)
        return losses, [(mine.strip(), x["target"]) for mine, x in zip(said, test)]

    return Side(model, collate, encoded(train), ask, (Seq2SeqTrainer, Seq2SeqTrainingArguments))


def sft(asked: Asked, tokenizer: Any, train: Rows, test: Rows) -> Side:
    """An answer to a message; the message is not learnt."""
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32)
    collate = DataCollatorForSeq2Seq(tokenizer)

    def encoded(rows: Rows) -> Rows:
        made = []
        for x in rows:
            whole, begun = (
                tokenizer.apply_chat_template(part, return_dict=False, add_generation_prompt=asks)
                for part, asks in ((x["messages"], False), (x["messages"][:-1], True))
            )
            end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)  # the line break behind it is not learnt
            made.append({"input_ids": whole[:end], "labels": [NOT_LEARNT] * len(begun) + whole[len(begun) : end]})
        return made

    def ask(many: int) -> tuple[list[Component], list[Pair]]:
        losses = []
        for row in encoded(test[:many]):
            for batch, out in outputs(model, collate, [row]):
                losses += token_losses(out.logits[:, :-1], batch["labels"][:, 1:])
        return losses, []

    return Side(model, collate, encoded(train), ask)


def fitted(model: Any, method: str, layers: int) -> Any:
    """The model with only that trained which the method trains."""
    if method == "lora":
        kind = "SEQ_CLS" if hasattr(model, "classifier") else "CAUSAL_LM"
        return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type=kind))
    if method == "freeze":
        inner = model.base_model
        every = inner.encoder.layer if hasattr(inner, "encoder") else inner.layers
        frozen = [*inner.embeddings.parameters()] if hasattr(inner, "embeddings") else [*inner.embed_tokens.parameters()]
        for weight in [*frozen, *(p for layer in every[:-layers] for p in layer.parameters())]:
            weight.requires_grad_(False)
    return model


MAKE = {
    "classification": classification,
    "tagging": tagging,
    "question answering": question_answering,
    "seq2seq": seq2seq,
    "sft": sft,
}


class Clock(TrainerCallback):
    """Seconds from the first step's beginning to the last one's end."""

    begun = seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.begun = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.begun


def play(asked: Asked) -> dict:
    """One training."""
    torch.set_num_threads(asked["threads"])
    set_seed(asked["seed"])
    train, test = (read_lines(Path(asked[name])) for name in ("train", "test"))
    side = MAKE[asked["task"].partition(",")[0]](asked, AutoTokenizer.from_pretrained(asked["model"]), train, test)
    (before, _), clock = side.ask(BEFORE), Clock()
    trainer_kind, settings_kind = side.kinds
    with tempfile.TemporaryDirectory() as place:
        settings = settings_kind(
            output_dir=place,
            num_train_epochs=asked["epochs"],
            per_device_train_batch_size=asked["batch_size"],
            learning_rate=asked["learning_rate"],
            lr_scheduler_type="linear",
            max_grad_norm=1.0,
            seed=asked["seed"],
            train_sampling_strategy="group_by_length" if asked["grouped"] else "random",
            use_cpu=True,
            bf16=asked["precision"] == "bf16",
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = trainer_kind(
            model=fitted(side.model, asked["method"], asked["layers"]),
            args=settings,
            data_collator=side.collate,
            train_dataset=side.train,
            callbacks=[clock],
        )
        trainer.train()
    losses, said = side.ask(len(test))
    return {
        "seconds": clock.seconds,
        "steps": trainer.state.global_step,
        "before": before,
        "losses": losses,
        "said": said,
    }


if __name__ == "__main__":
    out, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(play(json.loads(sys.argv[1]))), file=out)
