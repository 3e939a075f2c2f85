"""Rewards: the alignment score, its shape, penalties, and the reward that combines them with the gates."""
