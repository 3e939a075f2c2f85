"""Alignment scores without a run: of a single solution, and of every row of a data set."""
