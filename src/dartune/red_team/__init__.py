"""Tests of a reward with honest and hacked rewrites, and `dartune check-reward`."""
