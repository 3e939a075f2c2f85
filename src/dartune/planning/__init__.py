"""What a run will cost: the work of every stage in tokens, and what it takes on this machine."""
