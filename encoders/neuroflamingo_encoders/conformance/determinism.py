"""Groups 3, 4 and 9: the same scan gives the same tokens, whatever lies beside it, in half precision, on any device."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from neuroflamingo_encoders.conformance.subject import Check, Failed, NotApplicable, Subject
from neuroflamingo_preprocessing.errors import NeuroFlamingoError

TOLERANCE = 1e-5
"""Of the largest token: what the order of summation may change."""
COSINE = 0.999
FAR = 30.0
"""What a neighbour's numbers are multiplied by, so that statistics over the batch would show."""


def difference(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference, by the size of the tokens where that is above 1."""
    if one.shape != other.shape:
        raise Failed(f"{list(one.shape)} here and {list(other.shape)} there")
    scale = max(1.0, float(one.abs().max()))
    return float((one - other).abs().max()) / scale


def repeatable(subject: Subject) -> str:
    """Two calls give the same bits: no random masking, no shuffling, no dropout."""
    x = subject.input()
    first, second = subject.encode(x).tokens, subject.encode(x).tokens
    if not torch.equal(first, second):
        raise Failed(f"two calls differ by {difference(first, second):.1e}: something random is left in eval mode")
    return "two calls give the same bits"


def parent_trains(subject: Subject) -> str:
    """A frozen encoder inside a model that trains gives the tokens of eval mode."""
    encoder = subject.frozen()
    nn.ModuleDict({"encoder": encoder}).train()
    if encoder.training or any(part.training for part in encoder.modules()):
        raise Failed("a part of the frozen encoder is in training mode when the parent trains")
    x = subject.input()
    expected = subject.encode(x).tokens
    for _ in range(2):
        if not torch.equal(subject.encode(x, encoder).tokens, expected):
            raise Failed("the tokens differ from those of eval mode when the parent trains")
    return "the parent's training mode changes nothing"


def input_untouched(subject: Subject) -> str:
    """The caller's tensor is not written to."""
    x = subject.input()
    before = x.clone()
    subject.encode(x)
    if not torch.equal(x, before):
        raise Failed("forward writes into its input")
    return "the input stays as it was"


def alone_or_together(subject: Subject) -> str:
    """A scan gives the same tokens alone, in a batch, and as one of several scans of a row."""
    x = subject.input(3)
    alone = torch.cat([subject.encode(one[None]).tokens for one in x])
    worst = 0.0
    for how, together in (
        ("in a batch", subject.encode(x).tokens),
        ("in a row", subject.encode(x.transpose(0, 1)).tokens.transpose(0, 1)),
    ):
        worst = max(worst, difference(alone, together))
        if worst > TOLERANCE:
            raise Failed(f"a scan alone and {how} differ by {worst:.1e} (allowed {TOLERANCE:g})")
    return f"largest difference {worst:.1e}"


def neighbours(subject: Subject) -> str:
    """What lies in the next slot changes nothing: another scan, an extreme one, an empty (padded) one."""
    x = subject.input(2)
    expected = subject.encode(x).tokens[0]
    others = {"another scan": subject.input(seed=7)[0]}
    if x.is_floating_point():  # ids have no empty and no extreme value
        others |= {"an empty slot": torch.zeros_like(x[1]), "an extreme scan": x[1] * FAR}
    worst = 0.0
    for how, other in others.items():
        tokens = subject.encode(torch.stack([x[0], other])).tokens[0]
        worst = max(worst, difference(expected, tokens))
        if worst > TOLERANCE:
            raise Failed(f"{how} in the next slot changes the tokens by {worst:.1e} (allowed {TOLERANCE:g})")
    return f"largest difference {worst:.1e}"


def masks(subject: Subject) -> str:
    """Where tokens are masked, some are left, and the masked ones hold no NaN that would spread."""
    output = subject.encode(subject.input(2, sizes=subject.sizes(largest=False)))
    if output.mask is None:
        raise NotApplicable("the encoder gives no mask")
    if not bool(output.mask.any(dim=-1).all()):
        raise Failed("all tokens of a scan are masked")
    if not bool(output.tokens.isfinite().all()):
        raise Failed("masked tokens are NaN or infinite, which spreads through any sum")
    return f"{int(output.mask.sum())} of {output.mask.numel()} tokens are real"


def bfloat16(subject: Subject) -> str:
    """In bfloat16 every token points where it points in float32."""
    x = subject.input()
    if x.is_floating_point():
        x = x.bfloat16().float()
    exact = subject.encode(x).tokens.flatten(0, 2)
    half = subject.frozen().to(torch.bfloat16)
    output = subject.encode(x.bfloat16() if x.is_floating_point() else x, half).tokens.flatten(0, 2)
    if output.dtype != torch.bfloat16:
        raise Failed(f"tokens of a bfloat16 encoder are {output.dtype}")
    output = output.float()
    if not bool(output.isfinite().all()):
        raise Failed("tokens are NaN or infinite in bfloat16")
    near = cosine_similarity(exact, output, dim=-1)
    near[(exact.norm(dim=-1) < 1e-3) & (output.norm(dim=-1) < 1e-2)] = 1.0  # a token of zeros points nowhere
    worst = int(near.argmin())
    if float(near[worst]) < COSINE:
        raise Failed(
            f"cosine {float(near[worst]):.4f} between token {worst} in bfloat16 and float32 (at least {COSINE})"
        )
    return f"smallest cosine {float(near[worst]):.5f}"


def on_cpu(subject: Subject) -> str:
    """There is a path without any accelerator or optional kernel: all checks ran on it."""
    devices = {tensor.device.type for tensor in subject.frozen().state_dict().values()}
    if devices - {"cpu"}:
        raise Failed(f"an encoder that was not moved has tensors on {', '.join(sorted(devices))}")
    return f"{list(subject.tokens().shape)} tokens on the CPU"


def moves(subject: Subject) -> str:
    """Everything goes along to another device: CUDA where there is one (same tokens), and torch's meta device."""
    x = subject.input()
    seen = "no CUDA here"
    if torch.cuda.is_available():
        tokens = subject.encode(x.cuda(), subject.frozen().cuda()).tokens
        if tokens.device.type != "cuda":
            raise Failed(f"tokens of an encoder on CUDA are on {tokens.device}")
        if (worst := difference(subject.encode(x).tokens, tokens.cpu())) > 100 * TOLERANCE:
            raise Failed(f"tokens on CUDA differ by {worst:.1e}")
        seen = f"CUDA differs by {worst:.1e}"
    try:
        tokens = subject.encode(x.to("meta"), copy.deepcopy(subject.frozen()).to("meta")).tokens
    except (NotImplementedError, NeuroFlamingoError) as error:
        raise NotApplicable(f"{seen}; cannot run without numbers: {str(error)[:120]}") from error
    except RuntimeError as error:
        if "item()" in str(error):
            raise NotApplicable(f"{seen}; cannot run without numbers: {str(error)[:120]}") from error
        raise Failed(f"something stays behind when the encoder moves: {str(error)[:200]}") from error
    if tokens.device.type != "meta":
        raise Failed(f"tokens of an encoder on the meta device are on {tokens.device}: something stays behind")
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
