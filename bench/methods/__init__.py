"""Method by method next to the PEFT library: the same loss curve, speed and memory."""
