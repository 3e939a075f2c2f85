"""What can be learnt from a few rows before a run: `dartune diagnose` and `dartune preview`."""
