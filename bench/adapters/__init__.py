"""Many adapters on one base model: the speed of mixed batches, and of reading adapters from disk."""
