"""A larger vocabulary: new merges of a byte-level BPE tokenizer, learnt from texts, and what they save."""
