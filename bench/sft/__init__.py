"""Supervised fine-tuning beside TRL: speed, memory, time to the first step, quality."""
