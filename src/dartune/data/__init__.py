"""Demonstrations in, adapted rows out: reading, rendering to token ids, checking, and writing data sets."""
