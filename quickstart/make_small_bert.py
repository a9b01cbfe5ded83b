"""A small BERT with random weights, to pretrain from scratch. Run: python quickstart/make_small_bert.py [TEXTS ...]

The vocabulary holds single characters: each Chinese one is a word of its own, as in BERT's tokenizer for Chinese; a
word of letters is its first letter, then ##letter. This suits Chinese and tests; for real English it is too fine.

    [PAD] [UNK] [CLS] [SEP] [MASK]   人 民 日 报 ...   a b c ...   ##a ##b ##c ...

TEXTS are files of plain text or of JSON lines, of which every string is read. The folder (config, weights as safetensors
with the masked-LM head, tokenizer) is a `base:`; the same texts and seed give the same bytes. Without TEXTS it reads
quickstart/data/ner_train.jsonl (prepare_ner.py) and writes quickstart/data/small_bert.
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
    """Writes the folder."""
    parser = argparse.ArgumentParser(description="A small BERT with random weights and a vocabulary of characters.")
    parser.add_argument("texts", type=Path, nargs="*", default=[DATA / "ner_train.jsonl"])
    parser.add_argument("--folder", type=Path, default=DATA / "small_bert")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--min-count", type=int, default=2, help="rarer characters are [UNK]")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    strings = (text for file in options.texts for text in strings_of(file))
    vocabulary = characters(strings, options.min_count)
    make(options.folder, vocabulary, options.layers, options.width, options.heads, options.max_length, options.seed)
    print(f"{options.folder}: {len(vocabulary):,} tokens, {options.layers} layers of width {options.width}")


def make(folder: Path, vocabulary: list[str], layers: int, width: int, heads: int, max_length: int, seed: int) -> None:
    """Writes config, random weights and tokenizer."""
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=max_length,
    )
    torch.manual_seed(seed)
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, model_max_length=max_length)
    tokenizer.save_pretrained(folder)


def characters(texts: Iterator[str], min_count: int) -> list[str]:
    """The special tokens, then every frequent character as BERT's tokenizer normalizes it (lower case, no accents), then
    the ## forms of those that may continue a word."""
    normalizer = BertTokenizer(vocab={token: i for i, token in enumerate(SPECIAL)}).backend_tokenizer.normalizer
    counts = Counter(letter for text in texts for letter in normalizer.normalize_str(text) if not letter.isspace())
    frequent = sorted(letter for letter, count in counts.items() if count >= min_count)
    inside = [letter for letter in frequent if letter.isalnum() and not "\u4e00" <= letter <= "\u9fff"]
    return [*SPECIAL, *frequent, *(f"##{letter}" for letter in inside)]


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
