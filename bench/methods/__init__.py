"""Method by method beside the PEFT library: the same loss curve, speed and memory."""
