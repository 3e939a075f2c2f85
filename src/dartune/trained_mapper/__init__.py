"""The trained mapper of a run, applied to rows that the run did not have: `dartune adapt` and `load_mapper`."""
