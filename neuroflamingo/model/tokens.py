"""Special tokens of prompts, what a tokenizer adds to a text, and the name of the encoder card's file."""

from __future__ import annotations

from typing import Any

IMAGE, END_OF_CHUNK, PAD = "<image>", "<|endofchunk|>", "<PAD>"  # the tokens that upstream adds, in its order


ENCODER_CARD = "encoder_card.json"  # the file that describes the encoder, beside the weights


def added_behind(tokenizer: Any) -> int:
    """Number of tokens that a tokenizer adds behind every text (an end token, with `add_eos_token`)."""
    whole = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    if not plain:  # it has no token for this letter
        return int(whole[-1:] == [tokenizer.eos_token_id])
    starts = (n for n in range(len(whole)) if whole[n : n + len(plain)] == plain)
    return len(whole) - next(starts, len(whole) - len(plain)) - len(plain)


def token_ids(tokenizer: Any, text: str, *, special_tokens: bool = True) -> list[int]:
    """Ids of a text that goes on: with the tokens that the tokenizer adds in front of it, without those behind it.

    A prompt that ends with an end token is over, and samples write their own end token.

    Args:
        tokenizer: of transformers.
        text: a prompt, or a whole sample.
        special_tokens: let the tokenizer add what it adds in front.
    """
    ids = list(tokenizer(text, add_special_tokens=special_tokens)["input_ids"])
    return ids[: len(ids) - added_behind(tokenizer)] if special_tokens else ids
