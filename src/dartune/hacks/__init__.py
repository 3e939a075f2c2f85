"""Hacks: a catalogue of named ways of gaming the reward, and their detection in a rewrite."""
