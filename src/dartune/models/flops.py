"""An estimate of the floating point operations a model spends: two for each weight it multiplies with and token.

Attention's own products are left out: they matter once a text is several times as long as the model is wide.
"""

from __future__ import annotations

from torch import nn

FORWARD, BACKWARD = 2, 4
TRAINING = FORWARD + BACKWARD


def multiplied_weights(model: nn.Module) -> int:
    """Weights that take part in a matrix product: all but an input embedding that is not the output layer, too."""
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight
    output = model.get_output_embeddings()
    tied = output is not None and output.weight is embedding
    return total - (0 if tied else embedding.numel())
