"""Supervised fine-tuning beside LLaMA-Factory and LitGPT: speed and memory."""
