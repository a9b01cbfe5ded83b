"""A small BERT with random weights, to pretrain from nothing. Run: python quickstart/make_small_bert.py [TEXTS ...]

The vocabulary holds single characters: each Chinese one is a word of its own, as BERT's tokenizer divides Chinese; a word
of letters is its first letter, then ##letter. So it is right for Chinese, and for tests; for real English it is too fine.

    [PAD] [UNK] [CLS] [SEP] [MASK]   人 民 日 报 ...   a b c ...   ##a ##b ##c ...

TEXTS are files of plain text or of JSON lines, of which every string is read. The folder (config, weights as safetensors,
with the masked-LM head, and tokenizer) is a `base:`; the same texts and the same seed give the same bytes. Without TEXTS it
is made of quickstart/data/ner_train.jsonl (prepare_ner.py), as quickstart/data/small_bert.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

DATA = Path(__file__).parent / "data"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description="A small BERT with random weights and a vocabulary of characters.")
    parser.add_argument("texts", type=Path, nargs="*", default=[DATA / "ner_train.jsonl"])
    parser.add_argument("--folder", type=Path, default=DATA / "small_bert")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--least", type=int, default=2, help="characters that occur less often are [UNK]")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    strings = (text for file in asked.texts for text in strings_of(file))
    vocabulary = characters(strings, asked.least)
    make(asked.folder, vocabulary, asked.layers, asked.width, asked.heads, asked.context, asked.seed)
    print(f"{asked.folder}: {len(vocabulary):,} tokens, {asked.layers} layers of width {asked.width}")


def make(folder: Path, vocabulary: list[str], layers: int, width: int, heads: int, context: int, seed: int) -> None:
    """Write config, random weights and tokenizer."""
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=context,
    )
    torch.manual_seed(seed)
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, model_max_length=context)
    tokenizer.save_pretrained(folder)


def characters(texts: Iterator[str], least: int) -> list[str]:
    """The special tokens, then every character that occurs often enough, as BERT's tokenizer writes it (small letters,
    no accents); of those that may go on inside a word, ## forms too."""
    plain = BertTokenizer(vocab={token: i for i, token in enumerate(SPECIAL)}).backend_tokenizer.normalizer
    counts = Counter(letter for text in texts for letter in plain.normalize_str(text) if not letter.isspace())
    known = sorted(letter for letter, many in counts.items() if many >= least)
    inside = [letter for letter in known if letter.isalnum() and not "\u4e00" <= letter <= "\u9fff"]
    return [*SPECIAL, *known, *(f"##{letter}" for letter in inside)]


def strings_of(file: Path) -> Iterator[str]:
    """Every string in a file of JSON lines, or every line of a plain one."""
    for line in file.read_text(encoding="utf-8").splitlines():
        yield from _strings(json.loads(line)) if file.suffix == ".jsonl" else (line,)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


if __name__ == "__main__":
    main()
