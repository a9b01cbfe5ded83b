"""Do both systems make the same tokens of the same rows, and learn the same ones? Row by row, position by position.

    python bench/sft_same_rows.py --model FOLDER --train train.jsonl --peer-rows OUT/rows.jsonl

OUT/rows.jsonl is what sft_trl.py writes: the ids and labels that TRL made. Run it with the Python that weitiao is
installed in. Prints one JSON line. What only one side learns is counted by the words it stands for, so that a
difference (TRL also learns the line break that a template writes behind the end of turn) is seen and not guessed.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from transformers import AutoTokenizer

from weitiao.core.batch import IGNORE
from weitiao.core.example import Chat, Text, Turn
from weitiao.core.objective import Objective
from weitiao.core.registry import create
from weitiao.data.tokenization import ChatProcessor


def compare(model: Path, train: Path, peer_rows: Path) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(model)
    processor, sft, causal_lm = ChatProcessor.make(tokenizer), create(Objective, "sft"), create(Objective, "causal_lm")
    counts: Counter[str] = Counter()
    theirs_only: Counter[str] = Counter()
    ours_only: Counter[str] = Counter()
    for line, peer_line in zip(train.read_text().splitlines(), peer_rows.read_text().splitlines(), strict=True):
        row, theirs = json.loads(line), json.loads(peer_line)
        if "text" in row:
            (ours,) = causal_lm.rows(Text(row["text"]), processor)
        else:
            turns = tuple(Turn(message["role"], message["content"]) for message in row["messages"])
            (ours,) = sft.rows(Chat(turns), processor)
        ids, labels = list(ours["input_ids"]), list(ours["labels"])
        # Ours are shifted already: position t holds what it must say, which is token t + 1. TRL shifts in the loss.
        ours_learnt = {(place + 1, label) for place, label in enumerate(labels) if label != IGNORE}
        theirs_learnt = {(place, label) for place, label in enumerate(theirs["labels"]) if place and label != -100}
        counts["rows"] += 1
        counts["rows_with_equal_ids"] += theirs["input_ids"][: len(ids)] == ids
        counts["trl_tokens"] += len(theirs["input_ids"])
        counts["weitiao_tokens"] += len(ids)
        counts["trl_supervised"] += len(theirs_learnt)
        counts["weitiao_supervised"] += len(ours_learnt)
        theirs_only.update(tokenizer.decode([label]) for _, label in theirs_learnt - ours_learnt)
        ours_only.update(tokenizer.decode([label]) for _, label in ours_learnt - theirs_learnt)
    return {**counts, "only_trl_learns": dict(theirs_only), "only_weitiao_learns": dict(ours_only)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--peer-rows", type=Path, required=True)
    options = parser.parse_args()
    print(json.dumps(compare(options.model, options.train, options.peer_rows)), flush=True)


if __name__ == "__main__":
    main()
