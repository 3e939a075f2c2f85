"""The run folder: cached and resumable stages, atomic files, cost, lock, status, progress, environment, redaction."""
