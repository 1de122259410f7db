"""What OpenFlamingo is: the resampler, the gated cross-attention, and the language model that they are fused with."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
