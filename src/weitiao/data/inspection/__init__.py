"""What rows of data hold, for `weitiao data inspect`: one file a question. Each sees the rows in batches, once."""
