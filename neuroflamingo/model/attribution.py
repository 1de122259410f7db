"""Attribution of text to scan regions: gated attention traced back through the resampler to the encoder's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from neuroflamingo.model.base import FusedModel
from neuroflamingo.model.gated_attention import MaskedCrossAttention, split_heads
from neuroflamingo.model.media import Media, allowed_scans, check_count, masked_plan, media_time
from neuroflamingo.model.resampler import PerceiverResampler
from neuroflamingo.model.scan_inputs import ScanInputs, scan_places
from neuroflamingo.model.scan_inputs import scan_tokens as tokens_of
from neuroflamingo_preprocessing.errors import UsageError


class Attribution(FusedModel):
    """Attribution methods of `NeuroFlamingo`."""

    @torch.no_grad()
    def attention_rollout(
        self,
        input_ids: Int[Tensor, "batch text"],
        attention_mask: Int[Tensor, "batch text"] | None = None,
        scans: Float[Tensor, "batch scan *axes"] | None = None,
        scan_tokens: Float[Tensor, "batch scan *frame token width"] | None = None,
        scan_mask: Bool[Tensor, "batch scan"] | None = None,
        token_mask: Bool[Tensor, "batch scan *token"] | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "batch text scan token"]:
        """Attention of each text position to each encoder token (frames flattened).

        The gated attention of every block (weighted by |tanh gate|, equally if all gates are closed) times the
        latents' attention to the tokens, both weighted by value norms, see `norm_weighted`. It shows which tokens a
        position's hidden state attended to, which does not prove that the next word came from there.

        Args:
            input_ids: prompt and report together.
            attention_mask, scans, scan_tokens, scan_mask, token_mask, kwargs: as in `forward`.

        Returns:
            Rows that sum to 1 over scans and tokens; zero for text before the first scan.

        Raises:
            UsageError: no scans, or `<image>` tokens that do not match them.
        """
        scan_inputs = ScanInputs(scans, scan_tokens, scan_mask, token_mask)
        if not scan_inputs.has_scans:
            raise UsageError("no scans were given", expected="scans or scan_tokens", hint="pass the scans of the text")
        present = scan_inputs.present(len(input_ids)).to(self.device)
        tokens, real = tokens_of(scan_inputs, self.encoder, self.perceiver)
        media = _masked_media(self, input_ids.to(present.device) == self.config.image_token_id, present, tokens, real)
        states: dict[int | None, Tensor] = {}
        self._read(
            replace(media, observe=states.__setitem__),
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=kwargs.pop("position_ids", None),
            logits_to_keep=1,
            use_cache=False,
            **kwargs,
        )
        blocks = self.gated_blocks
        shares, looked = [], []
        for layer, block in blocks.items():
            with in_memory(block, block.attn.to_out):
                shares.append(block.attn_gate.detach().tanh().abs()[0].to(tokens))
                looked.append(block_weights(block.attn, states[layer], media).to(tokens))
        shares, looked = torch.stack(shares), torch.stack(looked)
        shares = shares / shares.sum() if bool(shares.any()) else torch.full_like(shares, 1 / len(shares))
        taken = resampler_attribution(self.perceiver, tokens, real, scan_places(present))
        carried = torch.einsum("l,lbtsn,bsnk->btsk", shares, looked, taken)
        return normalise(carried.flatten(2)).view_as(carried)


@contextmanager
def in_memory(*modules: nn.Module) -> Iterator[None]:
    """Modules with their own weights in memory, for reading outside of their forward: they may be kept on the disk."""
    from accelerate.utils import align_module_device

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(align_module_device(module))
        yield


def _masked_media(model: FusedModel, images: Tensor, present: Tensor, tokens: Tensor, real: Tensor | None) -> Media:
    """Media of a whole text with the plan that scores every scan."""
    check_count(images.sum(-1), present.sum(-1), exact=True)
    ordinal = present.long().cumsum(-1) * present
    settings = model.config.cross_attention
    time = media_time(images, settings["media_rule"])
    plan = masked_plan(allowed_scans(time, ordinal, settings["only_attend_immediate_media"]))
    return Media(plan, model.perceiver(tokens, real, scan_places(present)))


def resampler_attribution(
    perceiver: PerceiverResampler,
    tokens: Float[Tensor, "batch scan frame token width"],
    mask: Tensor | None,
    places: Int[Tensor, "batch scan"] | None = None,
) -> Float[Tensor, "batch scan latent key"]:
    """Attention rollout of each latent to each token (frames flattened), rows summing to 1.

    Per layer, the attention of the heads (to tokens directly, to other latents with their own rollout so far) and the
    residual path count half each.

    Source:
        Abnar and Zuidema 2020, Quantifying Attention Flow in Transformers.
    """
    batch, scans = tokens.shape[:2]
    x, keys_mask = perceiver.flatten(tokens, mask, places)
    latents = perceiver.latents.to(x.dtype).expand(len(x), -1, -1)
    taken = x.new_zeros(len(x), latents.shape[1], x.shape[1])
    for attention, ff in perceiver.blocks():
        queries, keys, values = attention.queries_keys_values(x, latents)
        weights = norm_weighted(attention_weights(queries, keys, keys_mask), values, attention.to_out.weight)
        direct, between = weights.split([x.shape[1], latents.shape[1]], dim=-1)
        taken = (taken + direct + between @ taken) / 2
        latents = attention(x, latents, keys_mask) + latents
        latents = ff(latents) + latents
    return normalise(taken).unflatten(0, (batch, scans))


def attention_weights(
    queries: Float[Tensor, "batch head query width"], keys: Float[Tensor, "batch head key width"], mask: Tensor | None
) -> Float[Tensor, "batch head query key"]:
    """Attention weights, which the fused attention kernel does not return."""
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1)


def norm_weighted(
    weights: Float[Tensor, "batch head query key"],
    values: Float[Tensor, "batch head key width"],
    to_out: Float[Tensor, "dim inner"],
) -> Float[Tensor, "batch query key"]:
    """Attention weights times the norm of each key's transformed value, summed over heads; rows sum to 1.

    Heads that contribute nothing attend to a few keys with short values; attention weights alone would mistake those
    keys for important ones.

    Source:
        Kobayashi et al. 2020, Attention is Not Only a Weight: Analyzing Transformers with Vector Norms.
    """
    matrices = to_out.unflatten(-1, (values.shape[1], -1))
    products = torch.einsum("dhv,dhw->hvw", matrices, matrices)
    lengths = ((values @ products) * values).sum(-1).clamp(min=0).sqrt()
    return normalise((weights * lengths[:, :, None]).sum(1))


def block_weights(
    attention: MaskedCrossAttention, x: Float[Tensor, "batch text dim"], media: Media
) -> Float[Tensor, "batch text scan latent"]:
    """Norm-weighted attention of each text position to each latent (see `norm_weighted`); zero where masked.

    `media` has latents and the plan `masked`.
    """
    assert media.latents is not None
    scans, latents = media.latents.shape[1:3]
    keys, values = attention.arrange(attention.project(media.latents.to(x)), media.plan)
    queries = split_heads(attention.to_q(attention.norm(x)), attention.heads)
    weights = attention_weights(queries, keys, media.plan.mask(latents))
    weights = norm_weighted(weights, values, attention.to_out.weight)
    if media.plan.visible is not None:
        weights = weights.masked_fill(~media.plan.visible[..., None], 0.0)
    return weights.unflatten(-1, (scans, latents))


def normalise(weights: Float[Tensor, "*batch key"]) -> Float[Tensor, "*batch key"]:
    """Scale rows to sum to 1; rows of zeros stay zero."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
