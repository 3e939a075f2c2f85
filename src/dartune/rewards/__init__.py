"""Rewards: how good a rewrite is. Answer checking and gates need no model; alignment asks the target."""
