"""Gates: pass/fail checks that a rewrite must pass. All are listed in `registry.py`; each one reads a `GateInput`."""
