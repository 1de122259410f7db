from .encoder_choice import EncoderChoice as EncoderChoice
from .encoder_choice import load_encoder as load_encoder
from .token_file import encode as encode
from .token_store import encode_into_store as encode_into_store
