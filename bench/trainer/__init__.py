"""Seven jobs beside the Hugging Face Trainer: quality and speed."""
