"""Rows for the SFT suite, of three kinds.

    python -m bench.sft.rows --kind chatterbot --model MODEL_FOLDER --train 96 --validation 64 --out FOLDER

docstrings   {"messages": [function, docstring]} of 30 to 512 tokens (bench/shared/docstring_rows.py)
chatterbot   {"messages": [message, reply]}: the first two turns of chatterbot-corpus's English dialogues, each message once
equal        {"text": function and docstring}, cut so that each is 256 tokens with its end-of-text token; all are trained on

Writes and prints what docstring_rows.py does.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from bench.shared.docstring_rows import LONGEST, SHORTEST, as_row, shuffled_pairs, usable_rows, write_parts
from quickstart.prepare_data import CORPUS, conversations
from weitiao.core.example import plain

EQUAL_LENGTH = 256


def docstring_rows(tokenizer, seed: int) -> Iterator[dict]:
    return usable_rows(tokenizer, seed, SHORTEST, LONGEST)


def chatterbot_rows(tokenizer, seed: int) -> Iterator[dict]:
    """Rows in a fixed random order, independent of the tokenizer."""
    folder, by_message = CORPUS.fetch(), {}
    for topic in sorted(path.stem for path in folder.glob("*.yml")):
        for dialogue in conversations(folder, topic):
            if len(dialogue) > 1 and dialogue[0] and dialogue[1]:
                by_message.setdefault(plain(dialogue[0]), as_row(dialogue[0], dialogue[1]))
    rows = [by_message[message] for message in sorted(by_message)]
    random.Random(seed).shuffle(rows)
    yield from rows


def equal_rows(tokenizer, seed: int) -> Iterator[dict]:
    """Texts that have exactly the same length when they are tokenized again, without spaces at either end."""
    for source, docstring in shuffled_pairs(seed):
        ids = tokenizer(f"{source}\n\n{docstring}")["input_ids"][: EQUAL_LENGTH - 1]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if text == text.strip() and len(tokenizer(text)["input_ids"]) == EQUAL_LENGTH - 1:
            yield {"text": text}


KINDS = {"docstrings": docstring_rows, "chatterbot": chatterbot_rows, "equal": equal_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=KINDS, default="docstrings")
    parser.add_argument("--model", required=True, help="a model folder, for its tokenizer and chat template")
    parser.add_argument("--train", type=int, default=96)
    parser.add_argument("--validation", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    from transformers import AutoTokenizer  # slow to import: only when run

    rows = KINDS[options.kind](AutoTokenizer.from_pretrained(options.model), options.seed)
    print(json.dumps(write_parts(rows, options)))


if __name__ == "__main__":
    main()
