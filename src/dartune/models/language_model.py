"""Type of a language model."""

from typing import Any, TypeAlias

LanguageModel: TypeAlias = Any
"""A causal language model of transformers, possibly wrapped by PEFT or torch.

It is `Any`, because to a type checker every unknown attribute of an `nn.Module`, such as `config` or `save_pretrained`,
is a tensor or a module.
"""
