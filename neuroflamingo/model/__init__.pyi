from .config import NeuroFlamingoConfig as NeuroFlamingoConfig
from .gated_attention import GatedCrossAttentionBlock as GatedCrossAttentionBlock
from .media import Media as Media
from .neuroflamingo import NeuroFlamingo as NeuroFlamingo
from .processor import NeuroFlamingoProcessor as NeuroFlamingoProcessor
from .resampler import PerceiverResampler as PerceiverResampler
