"""The special tokens of prompts, and the name of the file that describes the encoder."""

from __future__ import annotations

IMAGE, END_OF_CHUNK, PAD = "<image>", "<|endofchunk|>", "<PAD>"  # the tokens that upstream adds, in its order


ENCODER_CARD = "encoder_card.json"  # the file that describes the encoder, beside the weights
