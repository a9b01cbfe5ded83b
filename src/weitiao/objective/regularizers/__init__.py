"""One file a regularizer; each can be combined with any objective."""
