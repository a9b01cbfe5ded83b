"""weitiao 微调: fine-tune a pretrained model on your own data, and be able to trust the result."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing is told to anybody
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or it warns at every fork

__version__ = "0.1.0"
