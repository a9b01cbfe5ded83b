"""A small BERT that knows nothing yet, to train from the beginning. Run: quickstart/make_small_bert.py [TEXT.jsonl ...]

4 layers of width 256, about 4 million weights, drawn at random (seed 0); its vocabulary is every character that the texts
hold at least twice. Writes quickstart/data/small_bert: config.json, weights and tokenizer, as any `base:` may name them.
Default text: quickstart/data/ner_train.jsonl, which prepare_ner.py makes.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, BertTokenizer

from weitiao.data.units import is_unspaced

DATA = Path(__file__).parent / "data"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
OFTEN = 2


def main(files: Sequence[str]) -> None:
    """Read the texts, write the folder."""
    counts: Counter[str] = Counter()
    for file in files or [str(DATA / "ner_train.jsonl")]:
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                counts.update(json.loads(line)["text"])
    known = sorted(x for x, many in counts.items() if many >= OFTEN and not x.isspace())
    inner = [f"##{x}" for x in known if x.isalnum() and not is_unspaced(x)]  # a letter inside a word
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *known, *inner))}
    folder = DATA / "small_bert"
    BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=512).save_pretrained(folder)
    shape: Any = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(vocabulary), **shape), add_pooling_layer=False)
    model.save_pretrained(folder)
    print(f"{folder}: {len(vocabulary):,} tokens, {sum(p.numel() for p in model.parameters()):,} weights")


if __name__ == "__main__":
    main(sys.argv[1:])
