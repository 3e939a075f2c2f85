"""Models: loading, saving, LoRA, sharding, precision and FLOPs. Sampling is in `engines`, training in `train`."""
