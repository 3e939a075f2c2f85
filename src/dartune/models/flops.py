"""Estimates the FLOPs of a model: 2 per multiplied weight and token in the forward, 4 in the backward.

The attention products (query-key and attention-value) are not counted. They matter only where a text is several times
longer than the model is wide.
"""

from __future__ import annotations

from dartune.models.language_model import LanguageModel

# FLOPs per weight and token: one multiplication and one addition. The backward does this twice, once for the gradient
# of the inputs and once for the gradient of the weights.
FORWARD, BACKWARD = 2, 4
TRAINING = FORWARD + BACKWARD


def multiplied_weights(model: LanguageModel) -> int:
    """Returns the number of weights that take part in a matrix product.

    An input embedding is a lookup and is not counted, unless it is tied to the output layer.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight
    output = model.get_output_embeddings()
    tied = output is not None and output.weight is embedding
    return total - (0 if tied else embedding.numel())
