"""Special tokens of prompts, and the name of the encoder card's file."""

from __future__ import annotations

IMAGE, END_OF_CHUNK, PAD = "<image>", "<|endofchunk|>", "<PAD>"  # the tokens that upstream adds, in its order


ENCODER_CARD = "encoder_card.json"  # the file that describes the encoder, beside the weights
