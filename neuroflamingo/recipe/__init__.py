"""Recipes: their schema, how they are found and read, and where their data and weights come from."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
