"""The conformance kit: what every encoder must keep, as checks that any encoder can be run through."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
