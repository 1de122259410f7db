"""The report: a value (`Report`), the pictures in it, and its forms as page, JSON and text."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
