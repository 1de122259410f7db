"""Checkpoints: strict loading of published ones, of embedded models and of the user's own, on any devices."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
