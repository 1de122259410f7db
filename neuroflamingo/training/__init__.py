"""Training by recipe: any encoder with any language model, and the stages of the embedded models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
