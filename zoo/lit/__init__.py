"""Lightning modules and callbacks: loops, optimisers and logging only."""

from zoo.lit.tokenizer import TokenizerModule

__all__ = ["TokenizerModule"]
