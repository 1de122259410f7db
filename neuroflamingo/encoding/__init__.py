"""Encoding of scans into patch tokens, in a single file or a store."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
