"""Training data: manifests, filters, and the conversion of samples into token ids, labels and scans."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
