"""Checking, encoding and resampling of a batch's scans; padded slots cost nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from neuroflamingo.model.resampler import PerceiverResampler
from neuroflamingo_preprocessing.errors import UsageError


@dataclass(frozen=True)
class ScanInputs:
    """Scans as passed by the caller.

    Attributes:
        scans: prepared scans, `[batch, scan, channel, x, y, z]`, or other axes of the encoder's card after `scan`.
        scan_tokens: ready encoder tokens instead, `[batch, scan, token, width]`, or with frames
            `[batch, scan, frame, token, width]`.
        scan_mask: `[batch, scan]`, False where a row has fewer scans than the longest one.
        token_mask: `[batch, scan, token]` (or with frames), False where a token is padding.
    """

    scans: Tensor | None = None
    scan_tokens: Tensor | None = None
    scan_mask: Bool[Tensor, "batch scan"] | None = None
    token_mask: Bool[Tensor, "batch scan *token"] | None = None

    @property
    def has_scans(self) -> bool:
        """True if scans or ready tokens were passed."""
        return self.scans is not None or self.scan_tokens is not None

    def present(self, batch: int) -> Bool[Tensor, "batch scan"]:
        """True where a slot holds a scan.

        Raises:
            UsageError: both scans and tokens, or mismatched shapes.
        """
        if self.scans is not None and self.scan_tokens is not None:
            raise UsageError("both scans and scan_tokens were given", expected="one of them")
        given = self.scans if self.scans is not None else self.scan_tokens
        assert given is not None
        if given.ndim < (4 if self.scans is None else 3) or len(given) != batch:
            raise UsageError(
                "the scans do not fit the text",
                expected=f"a batch of {batch}: [batch, scan, token, width], or [batch, scan, ...] as the encoder asks",
                seen=f"shape {list(given.shape)}",
                hint="add the axes batch and scan in front of a single scan",
            )
        if self.scan_mask is None:
            return torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        if self.scan_mask.shape != given.shape[:2]:
            raise UsageError(
                "scan_mask does not fit the scans",
                expected=f"shape {list(given.shape[:2])}",
                seen=f"shape {list(self.scan_mask.shape)}",
            )
        return self.scan_mask.to(device=given.device, dtype=torch.bool)


def encode_scans(
    inputs: ScanInputs,
    present: Bool[Tensor, "batch scan"],
    encoder: nn.Module | None,
    perceiver: PerceiverResampler,
    before: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch scan latent width"]:
    """Latents of all scans; zero in padded slots, which cost nothing.

    `before` is the number of scans that each row's text has had, so that a scan of a later chunk gets the embedding of
    its place in the text; None: none.

    Raises:
        UsageError: scans for a model without an encoder, or tokens of another width.
    """
    places = None if perceiver.media_time_embs is None else scan_places(present, before)
    if bool(present.all()) and (places is None or before is None):
        return perceiver(*scan_tokens(inputs, encoder, perceiver))
    # Only the slots that hold a scan are encoded, as one long row.
    kept = ScanInputs(
        scans=None if inputs.scans is None else inputs.scans[present][None],
        scan_tokens=None if inputs.scan_tokens is None else inputs.scan_tokens[present][None],
        token_mask=None if inputs.token_mask is None else inputs.token_mask[present][None],
    )
    if not bool(present.any()):
        return perceiver.latents.new_zeros(*present.shape, *perceiver.latents.shape)
    places = None if places is None else places[present][None]
    latents = perceiver(*scan_tokens(kept, encoder, perceiver), places)[0]
    return latents.new_zeros(*present.shape, *latents.shape[1:]).masked_scatter(present[..., None, None], latents)


def scan_places(
    present: Bool[Tensor, "batch scan"], before: Int[Tensor, " batch"] | None = None
) -> Int[Tensor, "batch scan"]:
    """Place of each scan in its text, from 0; padded slots, which have none, get 0 as well."""
    places = present.long().cumsum(-1) - 1
    return (places if before is None else places + before.to(places)[:, None]).masked_fill(~present, 0)


def scan_tokens(
    inputs: ScanInputs, encoder: nn.Module | None, perceiver: PerceiverResampler
) -> tuple[Float[Tensor, "batch scan frame token width"], Bool[Tensor, "batch scan frame token"] | None]:
    """Tokens for the resampler, and a mask of the real ones.

    A frozen encoder runs without gradients.

    Raises:
        UsageError: see `encode_scans`.
    """
    tokens, mask = inputs.scan_tokens, inputs.token_mask
    if tokens is None:
        tokens, mask = _encode(inputs.scans, encoder, perceiver)
    if tokens.ndim == 4:
        tokens, mask = tokens[:, :, None], None if mask is None else mask[:, :, None]
    width = perceiver.latents.shape[1]
    if tokens.ndim != 5 or tokens.shape[-1] != width:
        raise UsageError(
            "the scan tokens do not fit the resampler",
            expected=f"[batch, scan, token, {width}] or [batch, scan, frame, token, {width}]",
            seen=f"shape {list(tokens.shape)}",
            hint="use the encoder that this model was trained with",
        )
    weight = perceiver.latents
    return tokens.to(device=weight.device, dtype=weight.dtype), None if mask is None else mask.to(weight.device).bool()


def _encode(scans: Any, encoder: nn.Module | None, perceiver: PerceiverResampler) -> tuple[Tensor, Tensor | None]:
    if encoder is None:
        raise UsageError(
            "this model has no encoder",
            expected="precomputed tokens, as scan_tokens=[batch, scan, token, width]",
            seen="scans",
            hint="assemble the model with an encoder",
        )
    weight = next(encoder.parameters(), perceiver.latents)
    trained = any(parameter.requires_grad for parameter in encoder.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        # ids of a sequence stay as they are: half precision cannot tell large ones apart
        card = getattr(encoder, "card", None)
        dtype = scans.dtype if card is not None and card.scan.modality == "sequence" else weight.dtype
        output = encoder(scans.to(device=weight.device, dtype=dtype))
    return output.tokens, output.mask
