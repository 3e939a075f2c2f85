"""Everything that touches a language model: loading, sampling, scoring, and the training-time forward."""
