"""Memory estimate of a recipe for each device, before anything is loaded, and settings that need less.

Weights, gradients and the optimiser's moments are counted. Activations are measured: one row runs through the model on
the meta device, and all tensors that autograd saves are summed up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from neuroflamingo.model import fusion
from neuroflamingo.model.media import Media, Plan
from neuroflamingo.recipe.schema import Recipe

if TYPE_CHECKING:
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo

GIB = 2**30
_MASK_IN_2D = frozenset({"bloom", "opt"})  # these make positions of the mask; the others take one of four axes
_TRAINED = 4  # bytes of a number that trains, of its gradient, and of each of Adam's two moments
_QUANTIZED = {None: None, "8bit": 1.0, "4bit": 0.52}  # bytes of a weight, scales included


@dataclass(frozen=True)
class Sizes:
    """Parts of the estimate; all but `trained` and `matrices` in bytes, for one device without sharding.

    Attributes:
        trained: number of trainable parameters.
        frozen: frozen weights.
        matrices: number of elements of the language model's own matrices, which may be quantised.
        matrices_kept: bytes of these without quantisation.
        whole: parts that every device holds unsharded (embeddings, head, resampler, encoder).
        unit: the largest layer or gated block.
        row: activations kept for the backward pass of one row.
        resampled: the part of `row` in the resampler.
        inputs: inputs of all layers and gated blocks, which gradient checkpointing keeps of a row.
        layers: number of these inputs.
        encoder: working memory of the encoder for one row's scans.
        copies: half-precision copies of float32 weights that autocast makes.
        logits: of one row, if every token has a label.
    """

    trained: int
    frozen: int
    matrices: int
    matrices_kept: int
    whole: int
    unit: int
    row: int
    resampled: int
    inputs: int
    layers: int
    encoder: int
    copies: int
    logits: int


@dataclass(frozen=True)
class Estimate:
    """Estimated bytes on one device.

    Attributes:
        weights: as stored, plus half-precision copies that autocast makes.
        gradients: with DDP including its buckets.
        optimizer: Adam's moments, and the moving average if there is one.
        gathered: with FSDP, parameters that are temporarily unsharded.
        activations: kept for the backward pass.
        logits: with their gradient, if every token has a label.
        encoder: working memory of a frozen encoder, or activations of one that trains.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    logits: int
    encoder: int

    @property
    def total(self) -> int:
        """Sum in bytes; the framework itself takes a few hundred MB more."""
        return sum(getattr(self, field.name) for field in fields(self))

    def lines(self) -> Iterator[str]:
        """Format the estimate as a table in GB."""
        for field in fields(self):
            if getattr(self, field.name):
                yield f"{field.name:<14}{getattr(self, field.name) / GIB:>9.2f} GB"
        yield f"{'all':<14}{self.total / GIB:>9.2f} GB"


def measure(recipe: Recipe, model: NeuroFlamingo, precision: str) -> Sizes:
    """Measure a model that was built from a recipe with `meta=True`; its dtype becomes that of `precision`."""
    sizes = _count(model, half=precision != "fp32")
    low = precision != "fp32"
    dtype = torch.bfloat16 if low else torch.float32
    model.to(dtype)  # pyright: ignore[reportCallIssue, reportArgumentType]
    model.train()
    tokens = _tokens_of_a_scan(model)
    row, resampled = saved_bytes(model, recipe.data.max_tokens, recipe.data.max_scans, tokens)
    layers = sum(isinstance(module, fusion.FusedLayer) for module in model.modules()) + len(model.gated_blocks)
    inputs = layers * recipe.data.max_tokens * fusion.text_width(model.lang_encoder) * dtype.itemsize
    vocabulary = model.lang_encoder.get_output_embeddings().weight.shape[0]  # pyright: ignore[reportOptionalMemberAccess]
    each = 4 + 4 + 4 + (2 * dtype.itemsize if low else 4)  # in float32, its softmax, gradients; half: both ways
    return replace(
        sizes,
        row=row,
        resampled=resampled,
        inputs=inputs,
        layers=layers,
        encoder=_encoder_bytes(recipe, model, tokens),
        logits=recipe.data.max_tokens * vocabulary * each,
    )


def combine(recipe: Recipe, sizes: Sizes, *, world: int = 1) -> Estimate:
    """Compute the estimate of a recipe from the sizes of its model."""
    run, share = recipe.run, max(1, recipe.optim.batch // world)
    each = _QUANTIZED[recipe.model.language_model.quantize]
    frozen, copies = sizes.frozen, sizes.copies
    if each is not None:
        frozen += int(sizes.matrices * each) - sizes.matrices_kept
        copies -= min(copies, 2 * sizes.matrices)  # each is made for a moment, when its layer is computed
    weights, trained = frozen + sizes.trained * _TRAINED, sizes.trained * _TRAINED
    gradients, gathered, moments = trained, 0, trained * (3 if recipe.optim.ema else 2)
    if world > 1 and run.parallel == "fsdp":
        whole = sizes.whole + 2 * sizes.unit  # the unit at work and the next one
        weights, gradients, moments = weights // world, gradients // world, moments // world
        gathered = max(0, whole - whole // world)
    elif world > 1:
        gradients *= 2
    kept = sizes.row
    if run.gradient_checkpointing != "off":
        once = (sizes.row - sizes.resampled) // max(1, sizes.layers)  # a layer is computed again
        kept = sizes.resampled + 2 * once + (sizes.inputs if run.gradient_checkpointing == "on" else 0)
    return Estimate(
        weights + copies,
        gradients,
        moments,
        gathered,
        kept * share,
        sizes.logits * share,
        0 if recipe.data.tokens else sizes.encoder * share,
    )


def advice(recipe: Recipe, sizes: Sizes, *, world: int = 1) -> list[tuple[str, int]]:
    """List settings that need less memory, each with the resulting total in bytes, the best one first."""
    now = combine(recipe, sizes, world=world).total
    changes: list[tuple[str, Callable[[dict[str, Any]], None]]] = []

    def offer(said: str, section: tuple[str, ...], **values: Any) -> None:
        def change(plain: dict[str, Any]) -> None:
            for key in section:
                plain = plain[key]
            plain.update(values)

        changes.append((said, change))

    optim, text = recipe.optim, recipe.model.language_model
    if recipe.run.gradient_checkpointing == "off":
        offer("run.gradient_checkpointing=on", ("run",), gradient_checkpointing="on")
    if recipe.run.gradient_checkpointing != "offload":
        offer("run.gradient_checkpointing=offload", ("run",), gradient_checkpointing="offload")
    if optim.batch // world > 1:
        batch, more = world, optim.accumulate * optim.batch // world
        offer(f"optim.batch={batch} with optim.accumulate={more}", ("optim",), batch=batch, accumulate=more)
    offer(f"data.max_tokens={recipe.data.max_tokens // 2}", ("data",), max_tokens=recipe.data.max_tokens // 2)
    if recipe.data.max_scans > 1:
        offer(f"data.max_scans={recipe.data.max_scans // 2}", ("data",), max_scans=recipe.data.max_scans // 2)
    if text.quantize is None:
        offer("model.language_model.quantize=8bit", ("model", "language_model"), quantize="8bit")
    if text.quantize != "4bit":
        offer("model.language_model.quantize=4bit", ("model", "language_model"), quantize="4bit")
    if world > 1 and recipe.run.parallel == "ddp":
        offer("run.parallel=fsdp", ("run",), parallel="fsdp")
    if recipe.model.encoder is not None and not recipe.data.tokens and not _trains_encoder(recipe):
        offer("data.tokens=STORE (made by neuroflamingo encode)", ("data",), tokens="STORE")
    found = []
    for said, change in changes:
        plain = recipe.model_dump()
        change(plain)
        other = Recipe.model_validate(plain)
        found.append((said, combine(other, _scaled(sizes, recipe, other), world=world).total))
    if text.dtype == "float32" and text.quantize is None:
        found.append(("model.language_model.dtype=bfloat16", now - sizes.matrices_kept // 2 - sizes.copies))
    return sorted((one for one in found if one[1] < now), key=lambda one: one[1])


def saved_bytes(model: NeuroFlamingo, text: int, scans: int, tokens: int) -> tuple[int, int]:
    """Measure the bytes that autograd keeps for one row: in total, and in the resampler.

    Attention is fused, as on the devices that will train, so no scores are kept.

    Args:
        model: on the meta device, in train mode, with one dtype throughout.
        text: number of tokens of the row.
        scans: number of scans of the row.
        tokens: number of tokens of a scan.
    """
    own = {_storage(p) for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[Any, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if _storage(tensor) not in own:
            kept[_storage(tensor)] = storage, storage.nbytes()  # held, or its address would come again
        return tensor

    weight = model.perceiver.latents
    ready = torch.zeros(1, scans, 1, tokens, weight.shape[1], dtype=weight.dtype, device="meta")
    media = torch.zeros(1, scans, *weight.shape, dtype=weight.dtype, device="meta", requires_grad=True)
    plan = Plan("one" if model.config.cross_attention["only_attend_immediate_media"] else "all")
    takes_4d = model.lang_encoder.config.model_type not in _MASK_IN_2D
    mask = torch.zeros(1, 1, text, text, dtype=weight.dtype, device="meta") if takes_4d else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _FusedAttention():
        model.perceiver(ready)
        resampled = sum(size for _, size in kept.values())
        model._read(
            Media(plan, media if any(p.requires_grad for p in model.perceiver.parameters()) else media.detach()),
            input_ids=torch.zeros(1, text, dtype=torch.long, device="meta"),
            attention_mask=mask,
            past_key_values=None,
            position_ids=None,
            use_cache=False,
            logits_to_keep=1,
        )
    return sum(size for _, size in kept.values()), resampled


class _FusedAttention(TorchFunctionMode):
    """Fused attention for the meta device, which otherwise would compute and keep the scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return _fused(*args, **(kwargs or {}))


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    mask = None if attn_mask is None else attn_mask.to(query.dtype)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)[0]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _count(model: NeuroFlamingo, *, half: bool) -> Sizes:
    matrices = [p for name, p in _own_matrices(model) if not p.requires_grad]
    inside = {id(p) for unit in _units(model) for p in unit.parameters()}
    parameters = list(model.parameters())
    wide = [p for p in parameters if p.dtype == torch.float32 and p.ndim > 1]
    return Sizes(
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        frozen=sum(_bytes(p) for p in parameters if not p.requires_grad) + sum(map(_bytes, model.buffers())),
        matrices=sum(p.numel() for p in matrices),
        matrices_kept=sum(map(_bytes, matrices)),
        whole=sum(_bytes(p) for p in parameters if id(p) not in inside),
        unit=max(sum(map(_bytes, unit.parameters())) for unit in _units(model)),
        row=0,
        resampled=0,
        inputs=0,
        layers=0,
        encoder=0,
        copies=2 * sum(p.numel() for p in wide) if half else 0,
        logits=0,
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _units(model: NeuroFlamingo) -> list[nn.Module]:
    layers = [module for module in model.modules() if isinstance(module, fusion.FusedLayer)]
    return [layer.decoder_layer for layer in layers] + list(model.gated_blocks.values())


def _own_matrices(model: NeuroFlamingo) -> Iterator[tuple[str, nn.Parameter]]:
    for module in model.modules():
        if isinstance(module, fusion.FusedLayer):
            for name, parameter in module.decoder_layer.named_parameters():
                if parameter.ndim == 2 and ".lora_" not in name:
                    yield name, parameter


def _tokens_of_a_scan(model: NeuroFlamingo) -> int:
    """Count the tokens of a scan by the card, with 64 for sides that it leaves open; 256 without an encoder."""
    card = getattr(model.encoder, "card", None)
    if card is None:
        return 256
    return card.output.token_count({axis.name: axis.size or 64 for axis in card.scan.axes})


def _encoder_bytes(recipe: Recipe, model: NeuroFlamingo, tokens: int) -> int:
    """Estimate the encoder's memory for one row: about ten widths per token, plus 16 for each trained layer."""
    if model.encoder is None:
        return 0
    one = recipe.data.max_scans * tokens * model.config.resampler["dim"] * 4
    every = list(model.encoder.parameters())
    share = sum(p.numel() for p in every if p.requires_grad) / max(1, sum(p.numel() for p in every))
    blocks = max((len(m) for m in model.encoder.modules() if isinstance(m, nn.ModuleList)), default=1)
    return int(one * (10 + 16 * blocks * share))


def _trains_encoder(recipe: Recipe) -> bool:
    lora = recipe.trained.lora
    blocks = recipe.trained.encoder_blocks + (lora.encoder_blocks if lora else 0)
    return bool(blocks) or "encoder" in recipe.trained.parts or any("encoder\\." in p for p in recipe.trained.patterns)


def _scaled(sizes: Sizes, recipe: Recipe, other: Recipe) -> Sizes:
    """Scale the sizes to fewer tokens or scans: nearly all grow with the former, the resampler's with the latter."""
    text, scans = other.data.max_tokens / recipe.data.max_tokens, other.data.max_scans / recipe.data.max_scans
    resampled = int(sizes.resampled * scans)
    return replace(
        sizes,
        row=int((sizes.row - sizes.resampled) * text) + resampled,
        resampled=resampled,
        inputs=int(sizes.inputs * text),
        encoder=int(sizes.encoder * scans),
        logits=int(sizes.logits * text),
    )
