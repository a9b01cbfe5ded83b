"""The neutral judge: a base model and one PEFT adapter, by plain transformers and peft in fp32, on held-out rows.

    PEER_PYTHON -m bench.sft.quality --model FOLDER --validation validation.jsonl [--adapter FOLDER]

Each row runs alone, without padding. The answer's tokens and the end-of-turn token after them are scored, each from
everything before it; what the chat template adds after the end of turn (a line break) is not scored. Without --adapter
the base model itself is scored. The judge does not know which system made the adapter. Prints one JSON line: the
token-mean loss over all rows, and each row's sum and count for paired comparisons.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer


def answer_ids(tokenizer, messages: list[dict]) -> tuple[list[int], int]:
    """(ids up to the end of the answer's turn, where the answer starts)."""
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    if ids[: len(prompt_ids)] != prompt_ids or ids[-1] != tokenizer.eos_token_id:
        raise SystemExit("This chat template is not prompt, answer, end of turn: it cannot be judged here.")
    return ids, len(prompt_ids)


@torch.inference_mode()
def row_loss(model, ids: list[int], start: int) -> tuple[float, int]:
    """(summed cross-entropy, number of tokens) of ids[start:]."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].float()
    targets = torch.tensor(ids[start:])
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item(), len(targets)


def with_adapter(model, folder: Path) -> tuple[PeftModel, int]:
    """(the model with its adapter, number of adapter weights); an adapter that fits only partly is refused."""
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    model = PeftModel.from_pretrained(model, folder)
    loaded = get_peft_model_state_dict(model)
    mismatched = sorted(set(stored) ^ set(loaded))
    if mismatched or not all(torch.equal(stored[name].float(), loaded[name].float()) for name in loaded):
        raise SystemExit(f"The adapter in {folder} was not loaded as stored. Names on one side only: {mismatched[:3]}")
    return model, sum(tensor.numel() for tensor in stored.values())


def judge(model_folder: Path, adapter: Path | None, validation: Path) -> dict:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    adapter_weights = 0
    if adapter is not None:
        model, adapter_weights = with_adapter(model, adapter)
    model.eval()
    rows = [json.loads(line)["messages"] for line in validation.read_text(encoding="utf-8").splitlines()]
    losses = [row_loss(model, *answer_ids(tokenizer, row)) for row in rows]
    sums, counts = [total for total, _ in losses], [count for _, count in losses]
    return {
        "loss": sum(sums) / sum(counts),
        "rows": len(rows),
        "tokens": sum(counts),
        "adapter_weights": adapter_weights,
        "sums": sums,
        "counts": counts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    options = parser.parse_args()
    print(json.dumps(judge(options.model, options.adapter, options.validation)), flush=True)


if __name__ == "__main__":
    main()
