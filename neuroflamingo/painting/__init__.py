"""Known findings painted into real anatomy: scans whose truth is exact."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
