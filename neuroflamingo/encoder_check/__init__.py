"""The proof of an encoder: conformance, and a report written end to end through it, in a process of its own."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
