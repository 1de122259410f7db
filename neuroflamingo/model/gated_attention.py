"""Gated cross-attention from text to scans, numerically identical to OpenFlamingo v2."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from neuroflamingo.model.media import KeysValues, Media, Plan, media_from_locations
from neuroflamingo.model.unused_parameters import gradients_exchanged, zero_gradient_term


def feed_forward(dim: int, mult: int = 4) -> nn.Sequential:
    """LayerNorm, then two bias-free matrices with an exact GELU between them; indices are part of checkpoints."""
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, dim * mult, bias=False),
        nn.GELU(),
        nn.Linear(dim * mult, dim, bias=False),
    )


def split_heads(x: Float[Tensor, "group key inner"], heads: int) -> Float[Tensor, "group head key head_width"]:
    """View `[group, key, head * head_width]` as one matrix per head."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class MaskedCrossAttention(nn.Module):
    """Cross-attention from text to scan latents, in which each token sees only the scans it may see.

    Args:
        dim: width of the text.
        dim_visual: width of the latents.
        dim_head, heads: size and number of heads; their product is the inner width, independent of the two widths.
        only_attend_immediate_media: a token sees its latest scan only, else every scan so far.

    Source:
        OpenFlamingo (mlfoundations/open_flamingo, MIT). Differs from upstream: text before the first scan gets zero in
        both modes; more `<image>` tokens than scans is an error; only allowed scores are computed.
    """

    def __init__(
        self,
        *,
        dim: int,
        dim_visual: int,
        dim_head: int = 64,
        heads: int = 8,
        only_attend_immediate_media: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.only_attend_immediate_media = only_attend_immediate_media
        inner = dim_head * heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim_visual, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch text dim"],
        media: Float[Tensor, "batch scan latent width"] | Media,
        media_locations: Bool[Tensor, "batch text_before"] | None = None,
        use_cached_media: bool = False,
        *,
        layer: int | None = None,
    ) -> Float[Tensor, "batch text dim"]:
        """Attend to the scans; tokens that see none get zero.

        Args:
            x: hidden states.
            media: a `Media`, or latents with `media_locations` and `use_cached_media`, as upstream.
            media_locations: True where a token is `<image>`.
            use_cached_media: the text comes after all of `media_locations`.
            layer: this block's layer number, to select its keys and values in `media`.
        """
        media = self.as_media(x, media, media_locations, use_cached_media)
        if media.sees_nothing:
            return torch.zeros_like(x)
        if media.observe is not None:
            media.observe(layer, x)
        keys, values = self._keys_values(media, layer)
        attended = self._attend(split_heads(self.to_q(self.norm(x)), self.heads), keys, values, media.plan)
        out = self.to_out(attended.transpose(1, 2).flatten(-2))
        if media.plan.visible is not None:
            out = out.masked_fill(~media.plan.visible[..., None], 0.0)
        return out

    def as_media(
        self, x: Tensor, media: Tensor | Media, locations: Tensor | None = None, cached: bool = False
    ) -> Media:
        """Combine upstream's three arguments into a `Media`; a `Media` is passed through."""
        if isinstance(media, Media):
            return media
        immediate = self.only_attend_immediate_media
        return media_from_locations(media, locations, x.shape[1], immediate=immediate, cached=cached)

    def project(self, latents: Float[Tensor, "batch scan latent width"]) -> Float[Tensor, "batch scan latent inner"]:
        """Keys and values of the scans, side by side in the last axis; computed once per scan, reused as text grows."""
        return self.to_kv(latents)

    def arrange(self, packed: Float[Tensor, "batch scan latent inner"], plan: Plan) -> KeysValues:
        """Keys and values that a plan scores, one matrix per head."""
        keys, values = plan.select(packed).chunk(2, dim=-1)
        return split_heads(keys, self.heads), split_heads(values, self.heads)

    def _keys_values(self, media: Media, layer: int | None) -> KeysValues:
        if media.keys_values is not None and layer is not None:
            return media.keys_values[layer]
        assert media.latents is not None
        return self.arrange(self.project(media.latents), media.plan)

    @staticmethod
    def _attend(queries: Tensor, keys: Tensor, values: Tensor, plan: Plan) -> Float[Tensor, "batch head text width"]:
        if plan.kind != "segments":
            scans = 1 if plan.allowed is None else plan.allowed.shape[-1]
            mask = plan.mask(keys.shape[-2] // scans)
            return scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        assert plan.slots is not None and plan.places is not None
        # Regroup the queries so that each group holds the tokens of one scan (see `media._segments`), attend within the
        # groups without a mask, and put the results back in text order. Whole rows over all heads are moved, before the
        # heads are split off: ten times faster than a gather per head. Queries that fill empty slots are never read.
        batch, scans, slots = plan.slots.shape
        grouped = queries.transpose(1, 2).flatten(0, 1).index_select(0, plan.slots.flatten())
        grouped = grouped.unflatten(0, (batch * scans, slots)).transpose(1, 2)
        read = scaled_dot_product_attention(grouped, keys, values).transpose(1, 2).flatten(0, 1)
        return read.index_select(0, plan.places.flatten()).unflatten(0, (batch, -1)).transpose(1, 2)


class GatedCrossAttentionBlock(nn.Module):
    """Cross-attention and feed-forward, added to the text through tanh gates that start closed.

    Args:
        dim: width of the text.
        dim_visual: width of the latents.
        dim_head, heads, only_attend_immediate_media: see `MaskedCrossAttention`.
        ff_mult: inner width of the feed-forward, in multiples of `dim`.

    Example:
        >>> import torch
        >>> from neuroflamingo.model import GatedCrossAttentionBlock
        >>> block = GatedCrossAttentionBlock(dim=32, dim_visual=64)
        >>> text = torch.randn(1, 4, 32)  # batch text dim
        >>> latents = torch.randn(1, 1, 8, 64)  # batch scan latent width
        >>> images = torch.tensor([[False, True, False, False]])  # batch text: the second token is <image>
        >>> torch.equal(block(text, latents, images), text)  # the gates are closed
        True

    Source:
        OpenFlamingo (mlfoundations/open_flamingo, MIT), after Flamingo (Alayrac et al. 2022).
    """

    def __init__(
        self,
        *,
        dim: int,
        dim_visual: int,
        dim_head: int = 64,
        heads: int = 8,
        ff_mult: int = 4,
        only_attend_immediate_media: bool = True,
    ) -> None:
        super().__init__()
        self.attn = MaskedCrossAttention(
            dim=dim,
            dim_visual=dim_visual,
            dim_head=dim_head,
            heads=heads,
            only_attend_immediate_media=only_attend_immediate_media,
        )
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.ff = feed_forward(dim, ff_mult)
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def project(self, latents: Float[Tensor, "batch scan latent width"]) -> Float[Tensor, "batch scan latent inner"]:
        """Keys and values of the scans. A method of the block, so that FSDP gathers a sharded block for it too."""
        return self.attn.project(latents)

    def forward(
        self,
        x: Float[Tensor, "batch text dim"],
        media: Float[Tensor, "batch scan latent width"] | Media,
        media_locations: Bool[Tensor, "batch text_before"] | None = None,
        use_cached_media: bool = False,
        *,
        layer: int | None = None,
    ) -> Float[Tensor, "batch text dim"]:
        """Add cross-attention and feed-forward to the text; arguments as in `MaskedCrossAttention.forward`.

        A token that sees no scan still passes through the feed-forward, as upstream: whether scans come later in a text
        cannot change earlier tokens.
        """
        media = self.attn.as_media(x, media, media_locations, use_cached_media)
        if not media.sees_nothing:
            x = x + self.attn(x, media, layer=layer) * self.attn_gate.tanh()
        elif gradients_exchanged():
            x = x + zero_gradient_term((*self.attn.parameters(), self.attn_gate))
        return x + self.ff(x) * self.ff_gate.tanh()
