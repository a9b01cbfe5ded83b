"""One file a kind of Example: which columns it is made of."""
