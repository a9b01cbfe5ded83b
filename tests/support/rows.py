"""Rows of text for recipes, and rows of token ids for batches."""

import json
from pathlib import Path

import torch

from weitiao.core.batch import IGNORE, Batch, pack

LENGTHS = (9, 5, 5, 13, 1, 7)


def chat_rows(
    count: int, answers: tuple[str, ...] = ("paris", "seven boxes", "the lazy dog and the quick fox")
) -> list[dict]:
    """Rows of unequal length."""
    asks = ("what time is it", "the fox", "quietly mix liquid and ask the wizards what is in the box", "你好 世界")
    return [
        {
            "messages": [
                {"role": "user", "content": f"{asks[i % len(asks)]} {i}"},
                {"role": "assistant", "content": answers[i % len(answers)]},
            ]
        }
        for i in range(count)
    ]


def rated_rows(count: int, two: bool = False) -> list[dict]:
    """Texts of unequal length, whose rating is decided by how often one word is there; or pairs of texts."""
    rows = [
        {"text": f"{'the fox ' * (i % 5)}and the {'lazy ' * (i % 3)}dog {i}", "score": i % 5 + 0.5} for i in range(count)
    ]
    return [{**row, "other": f"quick {'dog ' * (i % 4)}"} for i, row in enumerate(rows)] if two else rows


def question_rows(count: int) -> list[dict]:
    """Questions whose answer stands behind one word of the text; every fourth text holds none."""
    rows = []
    for i in range(count):
        answer = ("the lazy dog", "paris", "seven wizards")[i % 3]
        before = "the quick fox " * (i % 4) + "asks "
        text = f"{before}{answer if i % 4 else 'liquid'} and {'boxes ' * (i % 5)}time {i}"
        answers = {"text": [answer], "answer_start": [len(before)]} if i % 4 else {"text": [], "answer_start": []}
        rows.append({"question": "what asks", "context": text, "answers": answers})
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make_rows(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[dict]:
    """Random rows; about half of each row's positions are supervised, at least one."""
    random = torch.Generator().manual_seed(seed)
    rows = []
    for n in lengths:
        ids = torch.randint(3, 320, (n,), generator=random).tolist()
        labels = torch.randint(3, 320, (n,), generator=random).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORE if t < n // 2 else x for t, x in enumerate(labels)]})
    return rows


def batch_of(rows: list[dict]) -> Batch:
    return pack(rows, list(range(len(rows))))
