"""Groups 3, 4 and 9: a scan gives the same tokens every time, in any batch, in half precision and on any device."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from neuroflamingo_encoders.conformance.subject import Check, Failure, NotApplicable, Subject
from neuroflamingo_preprocessing.errors import NeuroFlamingoError

TOLERANCE = 1e-5
"""Allowed difference, relative to the largest token: the order of summation may change this much."""
COSINE = 0.999
FAR = 30.0
"""Factor for the numbers of another scan in the batch, so that statistics over the batch would show."""


def difference(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference, relative to the largest token if that is above 1."""
    if one.shape != other.shape:
        raise Failure(f"{list(one.shape)} here and {list(other.shape)} there")
    scale = max(1.0, float(one.abs().max()))
    return float((one - other).abs().max()) / scale


def repeatable(subject: Subject) -> str:
    """Two calls give equal bits: no random masking, shuffling or dropout."""
    x = subject.input()
    first, second = subject.encode(x).tokens, subject.encode(x).tokens
    if not torch.equal(first, second):
        raise Failure(f"two calls differ by {difference(first, second):.1e}: something random is left in eval mode")
    return "two calls give the same bits"


def parent_trains(subject: Subject) -> str:
    """A frozen encoder inside a model in training mode gives the tokens of eval mode."""
    encoder = subject.frozen()
    nn.ModuleDict({"encoder": encoder}).train()
    if encoder.training or any(part.training for part in encoder.modules()):
        raise Failure("a part of the frozen encoder is in training mode when the parent trains")
    x = subject.input()
    expected = subject.encode(x).tokens
    for _ in range(2):
        if not torch.equal(subject.encode(x, encoder).tokens, expected):
            raise Failure("the tokens differ from those of eval mode when the parent trains")
    return "the parent's training mode changes nothing"


def input_untouched(subject: Subject) -> str:
    """The input tensor is not modified."""
    x = subject.input()
    before = x.clone()
    subject.encode(x)
    if not torch.equal(x, before):
        raise Failure("forward writes into its input")
    return "the input stays as it was"


def alone_or_together(subject: Subject) -> str:
    """A scan gives the same tokens alone, in a batch, and among several scans of one row."""
    x = subject.input(3)
    alone = torch.cat([subject.encode(one[None]).tokens for one in x])
    worst = 0.0
    for place, together in (
        ("in a batch", subject.encode(x).tokens),
        ("in a row", subject.encode(x.transpose(0, 1)).tokens.transpose(0, 1)),
    ):
        worst = max(worst, difference(alone, together))
        if worst > TOLERANCE:
            raise Failure(f"a scan alone and {place} differ by {worst:.1e} (allowed {TOLERANCE:g})")
    return f"largest difference {worst:.1e}"


def neighbours(subject: Subject) -> str:
    """Another scan in the batch changes nothing, be it ordinary, extreme or empty (padding)."""
    x = subject.input(2)
    expected = subject.encode(x).tokens[0]
    others = {"another scan": subject.input(seed=7)[0]}
    if x.is_floating_point():  # ids have no empty and no extreme value
        others |= {"an empty slot": torch.zeros_like(x[1]), "an extreme scan": x[1] * FAR}
    worst = 0.0
    for place, other in others.items():
        tokens = subject.encode(torch.stack([x[0], other])).tokens[0]
        worst = max(worst, difference(expected, tokens))
        if worst > TOLERANCE:
            raise Failure(f"{place} in the next slot changes the tokens by {worst:.1e} (allowed {TOLERANCE:g})")
    return f"largest difference {worst:.1e}"


def masks(subject: Subject) -> str:
    """Masks leave some tokens, and masked tokens hold no NaN, which would spread."""
    output = subject.encode(subject.input(2, sizes=subject.sizes(largest=False)))
    if output.mask is None:
        raise NotApplicable("the encoder gives no mask")
    if not bool(output.mask.any(dim=-1).all()):
        raise Failure("all tokens of a scan are masked")
    if not bool(output.tokens.isfinite().all()):
        raise Failure("masked tokens are NaN or infinite, which spreads through any sum")
    return f"{int(output.mask.sum())} of {output.mask.numel()} tokens are real"


def bfloat16(subject: Subject) -> str:
    """In bfloat16 every token has the direction that it has in float32."""
    x = subject.input()
    if x.is_floating_point():
        x = x.bfloat16().float()
    exact = subject.encode(x).tokens.flatten(0, 2)
    half = subject.frozen().to(torch.bfloat16)
    output = subject.encode(x.bfloat16() if x.is_floating_point() else x, half).tokens.flatten(0, 2)
    if output.dtype != torch.bfloat16:
        raise Failure(f"tokens of a bfloat16 encoder are {output.dtype}")
    output = output.float()
    if not bool(output.isfinite().all()):
        raise Failure("tokens are NaN or infinite in bfloat16")
    near = cosine_similarity(exact, output, dim=-1)
    near[(exact.norm(dim=-1) < 1e-3) & (output.norm(dim=-1) < 1e-2)] = 1.0  # a token of zeros points nowhere
    worst = int(near.argmin())
    if float(near[worst]) < COSINE:
        raise Failure(
            f"cosine {float(near[worst]):.4f} between token {worst} in bfloat16 and float32 (at least {COSINE})"
        )
    return f"smallest cosine {float(near[worst]):.5f}"


def on_cpu(subject: Subject) -> str:
    """The encoder runs on a CPU, without accelerator or optional kernels, as in all checks."""
    devices = {tensor.device.type for tensor in subject.frozen().state_dict().values()}
    if devices - {"cpu"}:
        raise Failure(f"an encoder that was not moved has tensors on {', '.join(sorted(devices))}")
    return f"{list(subject.tokens().shape)} tokens on the CPU"


def moves(subject: Subject) -> str:
    """All tensors move to another device: CUDA if there is one (with equal tokens), and torch's meta device."""
    x = subject.input()
    seen = "no CUDA here"
    if torch.cuda.is_available():
        tokens = subject.encode(x.cuda(), subject.frozen().cuda()).tokens
        if tokens.device.type != "cuda":
            raise Failure(f"tokens of an encoder on CUDA are on {tokens.device}")
        if (worst := difference(subject.encode(x).tokens, tokens.cpu())) > 100 * TOLERANCE:
            raise Failure(f"tokens on CUDA differ by {worst:.1e}")
        seen = f"CUDA differs by {worst:.1e}"
    try:
        tokens = subject.encode(x.to("meta"), copy.deepcopy(subject.frozen()).to("meta")).tokens
    except (NotImplementedError, NeuroFlamingoError) as error:
        raise NotApplicable(f"{seen}; cannot run on the meta device: {str(error)[:120]}") from error
    except RuntimeError as error:
        if "item()" in str(error):
            raise NotApplicable(f"{seen}; cannot run on the meta device: {str(error)[:120]}") from error
        raise Failure(f"something stays behind when the encoder moves: {str(error)[:200]}") from error
    if tokens.device.type != "meta":
        raise Failure(f"tokens of an encoder on the meta device are on {tokens.device}: something stays behind")
    return f"all of it moves; {seen}"


CHECKS = (
    Check("determinism.repeatable", 3, repeatable),
    Check("determinism.parent_trains", 3, parent_trains),
    Check("determinism.input_untouched", 3, input_untouched),
    Check("batch.alone_or_together", 4, alone_or_together),
    Check("batch.neighbours", 4, neighbours),
    Check("batch.masks", 4, masks),
    Check("device.cpu", 9, on_cpu),
    Check("device.bfloat16", 9, bfloat16),
    Check("device.moves", 9, moves),
)
