"""NeuroFlamingo: brain scans in, checkable report text out. Public names load on first use, so importing stays fast."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
