"""Encoders: prepared scans in, patch tokens out. See README.md beside this package."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard
    from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
    from neuroflamingo_encoders.registry import build_encoder, encoder_card, list_encoders
    from neuroflamingo_encoders.token_store import TokenStore

_HOME = {
    "BrainEncoder": "contract",
    "EncoderCard": "card",
    "EncoderOutput": "contract",
    "TokenStore": "token_store",
    "build_encoder": "registry",
    "encoder_card": "registry",
    "list_encoders": "registry",
}

__all__ = [
    "BrainEncoder",
    "EncoderCard",
    "EncoderOutput",
    "TokenStore",
    "build_encoder",
    "encoder_card",
    "list_encoders",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
