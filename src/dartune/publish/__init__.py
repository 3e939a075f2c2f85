"""Commands on finished runs: upload to the Hugging Face Hub with a card, and standard benchmarks."""
