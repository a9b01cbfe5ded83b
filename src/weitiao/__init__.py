"""weitiao 微调: fine-tune a pretrained model on your own data, and be able to trust the result."""

__version__ = "0.1.0"
