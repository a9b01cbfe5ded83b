"""Supervised fine-tuning next to TRL: speed, memory, time to the first step, quality."""
