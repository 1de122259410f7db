"""OpenFlamingo's perceiver resampler: any number of patch tokens in, a fixed number of latents out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from neuroflamingo.model.gated_attention import feed_forward, split_heads
from neuroflamingo_preprocessing.errors import UsageError


class PerceiverAttention(nn.Module):
    """Attention of latents to the tokens of their scan and to each other.

    Source:
        OpenFlamingo (mlfoundations/open_flamingo, MIT).
    """

    def __init__(self, *, dim: int, dim_head: int = 64, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        inner = dim_head * heads
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "scan token dim"],
        latents: Float[Tensor, "scan latent dim"],
        mask: Bool[Tensor, "scan 1 1 key"] | None = None,
        standard: Float[Tensor, "scan token dim"] | None = None,
    ) -> Float[Tensor, "scan latent dim"]:
        """Attend from the latents to the tokens and latents for which `mask` is True (tokens first).

        `standard` is `x` with mean 0 and variance 1 per token, if already computed.
        """
        queries, keys, values = self.queries_keys_values(x, latents, standard)
        read = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.to_out(read.transpose(1, 2).flatten(-2))

    def queries_keys_values(
        self, x: Tensor, latents: Tensor, standard: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, `[scan, head, query or key, width]`; the keys are the tokens, then the latents."""
        latents = self.norm_latents(latents)
        if standard is None:
            packed = self.to_kv(torch.cat((self.norm_media(x), latents), dim=-2))
        else:
            # Fold the norm's scale and shift into the matrix. No gradient flows to `standard`, so the backward pass
            # derives theirs from the matrix's, without the matrix product that normalised tokens would need.
            weight = self.to_kv.weight
            tokens = linear(standard, weight * self.norm_media.weight, weight @ self.norm_media.bias)
            packed = torch.cat((tokens, self.to_kv(latents)), dim=-2)
        keys, values = packed.chunk(2, dim=-1)
        queries = self.to_q(latents)
        return split_heads(queries, self.heads), split_heads(keys, self.heads), split_heads(values, self.heads)


class PerceiverResampler(nn.Module):
    """Resampler of each scan's tokens into a fixed number of latents; scans are independent of each other.

    Args:
        dim: width of tokens and latents.
        depth: number of layers.
        dim_head, heads: size and number of attention heads.
        num_latents: latents per scan.
        max_num_media: maximum number of scans per row; adds a learnt embedding of the scan's position in its row.
        max_num_frames: maximum number of frames per scan; adds a learnt embedding of the frame's position.
        ff_mult: inner width of the feed-forward, in multiples of `dim`.

    Example:
        >>> import torch
        >>> from neuroflamingo.model import PerceiverResampler
        >>> resampler = PerceiverResampler(dim=64, depth=2, num_latents=8)
        >>> tokens = torch.randn(2, 3, 1, 50, 64)  # batch scan frame token width
        >>> list(resampler(tokens).shape)  # batch scan latent width
        [2, 3, 8, 64]

    Source:
        OpenFlamingo (mlfoundations/open_flamingo, MIT), after Flamingo (Alayrac et al. 2022). Differs from upstream: an
        optional token mask; too many frames or scans for the embeddings is a UsageError; in training on tokens that
        need no gradient, these are normalised once instead of in every layer.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int = 6,
        dim_head: int = 64,
        heads: int = 8,
        num_latents: int = 64,
        max_num_media: int | None = None,
        max_num_frames: int | None = None,
        ff_mult: int = 4,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, dim))
        self.frame_embs = nn.Parameter(torch.randn(max_num_frames, dim)) if max_num_frames is not None else None
        self.media_time_embs = nn.Parameter(torch.randn(max_num_media, 1, dim)) if max_num_media is not None else None
        self.layers = nn.ModuleList(
            nn.ModuleList((PerceiverAttention(dim=dim, dim_head=dim_head, heads=heads), feed_forward(dim, ff_mult)))
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    @property
    def settings(self) -> dict[str, int | None]:
        """Constructor arguments, derived from the parameters."""
        attention, ff = next(self.blocks())
        inner = ff[1]
        assert isinstance(inner, nn.Linear)
        return {
            "dim": self.latents.shape[1],
            "depth": len(self.layers),
            "dim_head": attention.to_q.out_features // attention.heads,
            "heads": attention.heads,
            "num_latents": self.latents.shape[0],
            "max_num_media": None if self.media_time_embs is None else len(self.media_time_embs),
            "max_num_frames": None if self.frame_embs is None else len(self.frame_embs),
            "ff_mult": inner.out_features // inner.in_features,
        }

    def blocks(self) -> Iterator[tuple[PerceiverAttention, nn.Sequential]]:
        """Attention and feed-forward of each layer."""
        yield from self.layers  # pyright: ignore[reportReturnType]

    def forward(
        self,
        x: Float[Tensor, "batch scan frame token dim"],
        mask: Bool[Tensor, "batch scan frame token"] | None = None,
        places: Int[Tensor, "batch scan"] | None = None,
    ) -> Float[Tensor, "batch scan latent dim"]:
        """Resample each scan.

        Args:
            x: patch tokens of each frame of each scan.
            mask: True where a token is real; the others get no attention. None: all tokens are real.
            places: place of each scan in its text, from 0, for the embedding of that place; None: as they stand in `x`.

        Raises:
            UsageError: more frames or scans than there are embeddings for.
        """
        batch, scans = x.shape[:2]
        tokens, keys = self.flatten(x, mask, places)
        standard = self._standard(tokens)
        latents = self.latents.to(tokens.dtype).expand(batch * scans, -1, -1)
        for attention, ff in self.blocks():
            latents = attention(tokens, latents, keys, standard) + latents
            latents = ff(latents) + latents
        return self.norm(latents).unflatten(0, (batch, scans))

    def _standard(self, tokens: Tensor) -> Tensor | None:
        """Normalise the tokens once for all layers, if training needs no gradient of them; else None.

        With adapters or offloading in place of a plain matrix, each layer normalises the tokens itself.
        """
        matrices = [attention.to_kv for attention, _ in self.blocks()]
        plain = all(type(matrix) is nn.Linear and not hasattr(matrix, "_hf_hook") for matrix in matrices)
        if not plain or not torch.is_grad_enabled() or tokens.requires_grad:
            return None
        return layer_norm(tokens, tokens.shape[-1:])

    def flatten(
        self, x: Tensor, mask: Tensor | None, places: Tensor | None = None
    ) -> tuple[Float[Tensor, "scan token dim"], Tensor | None]:
        """Add the embeddings, flatten frames into tokens and rows into scans, and extend the mask by the latents."""
        if self.frame_embs is not None:
            self._check("frames", x.shape[2], len(self.frame_embs), "max_num_frames")
            x = x + self.frame_embs[: x.shape[2], None]
        x = x.flatten(2, 3)
        if self.media_time_embs is not None:
            scans = x.shape[1] if places is None else int(places.max()) + 1
            self._check("scans", scans, len(self.media_time_embs), "max_num_media")
            x = x + (self.media_time_embs[:scans] if places is None else self.media_time_embs[places])
        x = x.flatten(0, 1)
        if mask is None:
            return x, None
        latents = mask.new_ones(len(x), len(self.latents))
        return x, torch.cat((mask.flatten(2, 3).flatten(0, 1), latents), dim=-1)[:, None, None]

    @staticmethod
    def _check(what: str, seen: int, limit: int, argument: str) -> None:
        if seen > limit:
            raise UsageError(
                f"the resampler has no embedding for that many {what}",
                expected=f"at most {limit} ({argument})",
                seen=str(seen),
                hint=f"pass fewer {what}, or train a resampler with a larger {argument}",
            )
