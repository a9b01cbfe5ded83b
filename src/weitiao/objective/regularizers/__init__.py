"""One file a regularizer: joins any objective."""
