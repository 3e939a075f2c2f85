"""Inference: sampling and log-probabilities, in this process, on several processes, or from a vLLM server."""
