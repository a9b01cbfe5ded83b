"""Do both systems make the same tokens of the same rows, and train on the same ones? Row by row, position by position.

    python -m bench.sft.same_rows --model FOLDER --train train.jsonl --peer-rows OUT/rows.jsonl

OUT/rows.jsonl is written by trl_side.py: the ids and labels that TRL made. Run it with the Python that weitiao is
installed in. Prints one JSON line. Tokens that only one side trains on are counted by their text, so that a difference
(TRL also trains on the line break that a template writes after the end of turn) can be seen.
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
    only_trl: Counter[str] = Counter()
    only_weitiao: Counter[str] = Counter()
    for line, peer_line in zip(train.read_text().splitlines(), peer_rows.read_text().splitlines(), strict=True):
        row, peer = json.loads(line), json.loads(peer_line)
        if "text" in row:
            (encoded,) = causal_lm.rows(Text(row["text"]), processor)
        else:
            chat = Chat(tuple(Turn(message["role"], message["content"]) for message in row["messages"]))
            (encoded,) = sft.rows(chat, processor)
        ids, labels = list(encoded["input_ids"]), list(encoded["labels"])
        # weitiao's labels are shifted already: position t holds token t + 1. TRL shifts in the loss.
        targets = {(position + 1, label) for position, label in enumerate(labels) if label != IGNORE}
        peer_targets = {(position, label) for position, label in enumerate(peer["labels"]) if position and label != -100}
        counts["rows"] += 1
        counts["rows_with_equal_ids"] += peer["input_ids"][: len(ids)] == ids
        counts["trl_tokens"] += len(peer["input_ids"])
        counts["weitiao_tokens"] += len(ids)
        counts["trl_supervised"] += len(peer_targets)
        counts["weitiao_supervised"] += len(targets)
        only_trl.update(tokenizer.decode([label]) for _, label in peer_targets - targets)
        only_weitiao.update(tokenizer.decode([label]) for _, label in targets - peer_targets)
    return {**counts, "only_trl_learns": dict(only_trl), "only_weitiao_learns": dict(only_weitiao)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--peer-rows", type=Path, required=True)
    options = parser.parse_args()
    print(json.dumps(compare(options.model, options.train, options.peer_rows)), flush=True)


if __name__ == "__main__":
    main()
