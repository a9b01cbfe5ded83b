"""How speed and memory grow with row length, vocabulary, model size, batch size and supervised share."""
