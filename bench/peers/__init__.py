"""Supervised fine-tuning next to LLaMA-Factory and LitGPT: speed and memory."""
