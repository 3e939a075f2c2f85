"""dartune: rewrite demonstrations into the words of the model that will learn from them."""

__version__ = "0.1.0"
