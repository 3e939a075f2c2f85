"""Seeds of sampling calls: one scheme for all stages, so that no two of them sample with the same seed."""

STRIDE = 1_000_003
"""Distance between the seeds of two runs: a prime above the number of steps or rows of one stream."""
PROBE, SYNTHESIS, OWN_SAMPLES, RENEWAL, DISTILLATION, DIAGNOSIS = 0, 500_000, 700_000, 800_000, 900_000, 950_000
"""Where the stages' streams of seeds begin. Mapper training shares the probe's stream: another model samples there."""


def sampling_seed(run_seed: int, position: int, stream: int = 0) -> int:
    """The seed of a sampling call.

    Args:
        run_seed: one of the config's `seeds`.
        position: the first row of the call's chunk, or the training step.
        stream: of the stage, one of the constants above.
    """
    return run_seed * STRIDE + stream + position
