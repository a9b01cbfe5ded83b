"""One file a rule: what is removed from texts, and which rows are left out. See core/cleaner.py."""
