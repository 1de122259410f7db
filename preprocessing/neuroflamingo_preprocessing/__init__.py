"""Scan files to prepared tensors: reading, alignment, resampling, normalisation. See README.md beside this package."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
