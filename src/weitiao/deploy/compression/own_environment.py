"""What techniques share that run in an environment of their own: a script, calibration rows, and how to come back."""

import json

from weitiao.core.compressor import Subject
from weitiao.core.messages import Message

PACKAGES = "llmcompressor>=0.14,<0.15"  # the script is written for these; they pin other versions of transformers

SCRIPT = '''"""Written by weitiao. Compress the merged model with llm-compressor, calibrated on the Run's own rows.

    python compress.py
"""

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from datasets import Dataset
from llmcompressor import oneshot
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL, TARGET, ROWS = {model!r}, {target!r}, {rows}

if __name__ == "__main__":
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto", local_files_only=True, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    with open("calibration.jsonl", encoding="utf-8") as lines:
        ids = [json.loads(line)["input_ids"] for line in lines]
    data = Dataset.from_dict({{"input_ids": ids, "attention_mask": [[1] * len(x) for x in ids]}})
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=data,
        recipe="recipe.yaml",
        max_seq_length={longest},
        num_calibration_samples=ROWS,
        pad_to_max_length=False,
        output_dir=TARGET,
    )
'''

README = Message(
    "# {title}\n\n"
    "Nothing is compressed yet: llm-compressor needs other versions of transformers than weitiao, so it runs in an "
    "environment of its own.\n\n"
    "    python -m venv .venv\n"
    "    .venv/bin/pip install -r requirements.txt\n"
    "    .venv/bin/python compress.py\n\n"
    "That reads `{model}/` (the merged model) and `calibration.jsonl` ({rows:,} rows of the Run, as token ids of its own "
    "template) and writes `{target}/` in the format of compressed-tensors. A GPU is used where there is one. Nothing here "
    "is a pickle, and nothing reaches the network while it runs.\n\n"
    "Then measure it with weitiao, which opens weights of 4 or 8 bits itself:\n\n"
    "    weitiao compress TARGET {target} --measure\n\n"
    "TARGET is the Run, or `{model}`. The table is written to `{target}/README.md`. `weitiao chat {target}` and vLLM open "
    "it too.\n"
)


def script_files(subject: Subject, title: Message, recipe: str, model: str, target: str) -> dict[str, str]:
    """The files of the folder.

    Args:
        recipe: llm-compressor's, YAML.
    """
    rows = [list(map(int, x)) for x in subject.rows]
    longest = max(map(len, rows))
    return {
        "recipe.yaml": recipe,
        "calibration.jsonl": "".join(json.dumps({"input_ids": x}) + "\n" for x in rows),
        "compress.py": SCRIPT.format(model=model, target=target, rows=len(rows), longest=longest),
        "requirements.txt": f"{PACKAGES}\n",
        "README.md": str(Message(README.template, title=title, model=model, target=target, rows=len(rows))),
    }
