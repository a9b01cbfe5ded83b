"""The same work with Hugging Face datasets: load_dataset, train_test_split, map(apply_chat_template); one line of JSON."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("file", type=Path)
PARSER.add_argument("--objective", default="sft")
PARSER.add_argument("--model", required=True, help="a folder")
PARSER.add_argument("--max-length", type=int, default=2048)
PARSER.add_argument("--validation", type=float, default=0.05)
PARSER.add_argument("--processes", type=int, default=1)
PARSER.add_argument("--cache", required=True)


def main() -> None:
    options = PARSER.parse_args()
    os.environ["HF_DATASETS_CACHE"] = options.cache
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    template, length = tokenizer.chat_template, options.max_length
    classes = {name: i for i, name in enumerate(("billing", "delivery", "account", "returns", "other"))}

    def encode_chat(row: dict[str, Any]) -> dict[str, Any]:
        """As TRL does for assistant_only_loss without generation marks: the prompt, then prompt and answer."""
        messages, common = row["messages"], {"chat_template": template, "return_dict": False}
        ids = tokenizer.apply_chat_template(messages, **common)
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **common)
        return {"input_ids": ids[:length], "labels": [-100] * len(prompt) + ids[len(prompt) : length]}

    def encode_text(row: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": tokenizer(row["text"]).input_ids[:length], "labels": classes[row["label"]]}

    started = time.perf_counter()
    rows = load_dataset("json", data_files=str(options.file), split="train")
    loaded = time.perf_counter()
    parts = rows.train_test_split(options.validation, seed=0)
    split = time.perf_counter()
    encode = encode_chat if options.objective == "sft" else encode_text
    count = options.processes if options.processes > 1 else None
    encoded = parts["train"].map(encode, num_proc=count, remove_columns=rows.column_names)
    ended = time.perf_counter()
    tokens = sum(len(x) for x in encoded.with_format("numpy")[:10000]["input_ids"])
    seconds = {"load": loaded - started, "split": split - loaded, "encode": ended - split}
    figures = {
        "rows": len(rows),
        "held_out": len(parts["test"]),
        "tokens_of_10000_rows": tokens,
        "encode_rows_per_s": round(len(encoded) / seconds["encode"]),
        "seconds": {name: round(x, 2) for name, x in seconds.items()},
        "total_s": round(ended - started, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
