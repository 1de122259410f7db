"""Nucleotide Transformer with transformers' ESM: DNA as tokens, so that `<image>` can stand for a sequence.

Source: instadeepai/nucleotide-transformer (CC BY-NC-SA 4.0), first generation, whose published files are plain ESM
files; the second generation needs code from the hub and is not supported. Differs from upstream: the other strand is
read 6-mer by 6-mer in reverse, so that its tokens stay partners of the forward ones (if the length is not a multiple
of six, the single bases then come first instead of last).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import EsmConfig, EsmModel

from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.families.nucleotide_transformer.cards import TINY
from neuroflamingo_encoders.families.nucleotide_transformer.tokenizer import partners
from neuroflamingo_encoders.layers.tiny_config import constants, shrunk
from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.sequence import CLASS, PADDING

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

    from neuroflamingo_encoders.card import EncoderCard


def swap_strand(values: Tensor, real: Bool[Tensor, "n token"]) -> Tensor:
    """Reverse each row's tokens after the class token; padding stays at the end. Applied twice, it changes nothing."""
    place = torch.arange(real.shape[1], device=real.device).expand_as(real)
    source = torch.where(real & (place > 0), real.sum(1, keepdim=True) - place, place)
    return values.gather(1, source if values.ndim == 2 else source[..., None].expand_as(values))


def pool_windows(
    tokens: Float[Tensor, "n token width"], real: Bool[Tensor, "n token"], window: int
) -> tuple[Float[Tensor, "n window width"], Bool[Tensor, "n window"]]:
    """Average the real tokens of each window; the class token stays as it is."""
    missing = (1 - tokens.shape[1]) % window
    weight = nn.functional.pad(real[:, 1:], (0, missing)).unflatten(1, (-1, window)).to(tokens.dtype)
    values = nn.functional.pad(tokens[:, 1:], (0, 0, 0, missing)).unflatten(1, (-1, window))
    count = weight.sum(2)
    mean = (values * weight[..., None]).sum(2) / count.clamp(min=1)[..., None]
    return torch.cat([tokens[:, :1], mean], 1), torch.cat([real[:, :1], count > 0], 1)


class NucleotideTransformerEncoder(BrainEncoder):
    """Ids `[token]` of `tokenizer.sequence_to_ids` to tokens after the last norm, class token first; padding masked.

    Args:
        card: declares in `network` the sizes, the strand and the pooling.
        config: the same names and `width`, instead of the card's.
    """

    def __init__(self, card: EncoderCard, config: dict | None = None) -> None:
        super().__init__(card)
        c = constants(card, config)
        self.strand, self.pool, self.vocabulary = str(c["strand"]), int(c["pool"]), int(c["vocabulary"])
        sizes = EsmConfig(
            vocab_size=self.vocabulary,
            hidden_size=c["width"],
            num_hidden_layers=c["depth"],
            num_attention_heads=c["heads"],
            intermediate_size=c["mlp"],
            max_position_embeddings=c["longest"] + 2,
            position_embedding_type="absolute",
            token_dropout=False,
            pad_token_id=PADDING,
            mask_token_id=2,
            layer_norm_eps=1e-12,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.esm = EsmModel(sizes, add_pooling_layer=False)
        self.esm.contact_head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        self.register_buffer("partner", torch.tensor(partners()), persistent=False)
        self.partner: Tensor

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """A few thousand weights, see `TINY` beside the cards."""
        return cls(*shrunk(card, TINY))

    def example(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Make ids of 6-mers after the class token, without padding."""
        ids = torch.randint(10, 4000, tuple(shape), generator=generator)
        ids[..., 0] = CLASS
        return ids

    def check(self, ids: Int64[Tensor, "n token"]) -> Bool[Tensor, "n token"]:
        """Check the ids and return the mask of those that are not padding.

        Raises:
            UsageError: ids that `sequence_to_ids` does not return.
        """
        whole = ids.dtype == torch.int64
        real = ids != PADDING
        if not whole or not bool(
            ((ids >= 0) & (ids < self.vocabulary)).all()
            & (ids[:, 0] == CLASS).all()
            & (real[:, 1:] <= real[:, :-1]).all()
        ):
            raise UsageError(
                "these numbers are not ids of DNA sequences",
                expected=f"int64, 0 to {self.vocabulary - 1}, class token ({CLASS}) first, padding ({PADDING}) last",
                seen=f"{ids.dtype}, {ids.min().item()} to {ids.max().item()}, first {ids[:, 0].unique().tolist()[:4]}",
                hint="give a FASTA file, or make them with tokenizer.sequence_to_ids; never cast ids to floats",
            )
        return real

    def strand_tokens(self, ids: Int64[Tensor, "n token"], real: Bool[Tensor, "n token"], other: bool) -> Tensor:
        """Compute the tokens of one strand `[n, token, width]`, always in the order of the forward strand."""
        if other:
            ids = swap_strand(self.partner[ids], real)
        tokens = self.esm(input_ids=ids, attention_mask=real.long()).last_hidden_state
        return swap_strand(tokens, real) if other else tokens

    def forward(self, x: Int64[Tensor, "batch scan token"]) -> EncoderOutput:
        """Compute the tokens `[batch, scan, token, width]` and their mask; they have no positions in the head."""
        ids = rearrange(x, "b s t -> (b s) t")
        real = self.check(ids)
        strands = {"forward": (False,), "reverse_complement": (True,), "mean": (False, True)}[self.strand]
        tokens = torch.stack([self.strand_tokens(ids, real, other) for other in strands]).mean(0)
        if self.pool > 1:
            tokens, real = pool_windows(tokens, real, self.pool)
        shape = {"b": x.shape[0], "s": x.shape[1]}
        return EncoderOutput(
            rearrange(tokens, "(b s) t w -> b s t w", **shape), rearrange(real, "(b s) t -> b s t", **shape)
        )
