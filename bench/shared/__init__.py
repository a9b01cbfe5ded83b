"""What the suites share: the machine, worker processes, memory, peers' environments, kept results, rows."""
