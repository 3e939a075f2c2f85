"""Training: the loop with exact resume, losses, reinforcement learning, fine-tuning, memory estimates, trackers."""
