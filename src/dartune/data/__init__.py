"""Data sets: file readers, row layouts, chat templates, quality checks, splits, and the adapted data set."""
