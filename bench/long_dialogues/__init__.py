"""Long conversations within a token budget."""
