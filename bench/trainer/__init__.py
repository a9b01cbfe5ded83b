"""Seven jobs next to the Hugging Face Trainer: quality and speed."""
