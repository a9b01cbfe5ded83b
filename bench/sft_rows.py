"""Rows for bench/sft.py, of three kinds.

    python bench/sft_rows.py --kind chatterbot --model MODEL_FOLDER --train 96 --validation 64 --out FOLDER

docstrings   {"messages": [function, docstring]} of 30 to 512 tokens (docstring_rows.py)
chatterbot   {"messages": [message, reply]}: what the English dialogues of chatterbot-corpus begin with, each message once
equal        {"text": function and docstring}, cut so that each is 256 tokens with its end-of-text token; all are learnt

Writes and prints what docstring_rows.py does.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from docstring_rows import LONGEST, SHORTEST, as_row, shuffled_pairs, usable_rows, write_parts
from weitiao.core.example import plain

EQUAL_LENGTH = 256


def docstring_rows(tokenizer, seed: int) -> Iterator[dict]:
    return usable_rows(tokenizer, seed, SHORTEST, LONGEST)


def chatterbot_rows(tokenizer, seed: int) -> Iterator[dict]:
    """In a fixed random order; the tokenizer has no say."""
    sys.path.append(str(Path(__file__).resolve().parent.parent / "quickstart"))
    from prepare_data import CORPUS, conversations

    folder, found = CORPUS.fetch(), {}
    for topic in sorted(path.stem for path in folder.glob("*.yml")):
        for turns in conversations(folder, topic):
            if len(turns) > 1 and turns[0] and turns[1]:
                found.setdefault(plain(turns[0]), as_row(turns[0], turns[1]))
    rows = [found[message] for message in sorted(found)]
    random.Random(seed).shuffle(rows)
    yield from rows


def equal_rows(tokenizer, seed: int) -> Iterator[dict]:
    """Texts that are as long as they should be again when they are read, and that begin and end with no space."""
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
    from transformers import AutoTokenizer  # slow to import: only when really run

    rows = KINDS[options.kind](AutoTokenizer.from_pretrained(options.model), options.seed)
    print(json.dumps(write_parts(rows, options)))


if __name__ == "__main__":
    main()
