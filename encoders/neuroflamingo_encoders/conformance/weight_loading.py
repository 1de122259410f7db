"""Groups 6, 7 and 10: weights load completely or not at all, freezing holds, and golden and saved tokens are met."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neuroflamingo_encoders.build import read_weights
from neuroflamingo_encoders.conformance.determinism import difference
from neuroflamingo_encoders.conformance.subject import Check, Failure, NotApplicable, Subject
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, NotFoundError

if TYPE_CHECKING:
    from neuroflamingo_encoders.contract import BrainEncoder

State = dict[str, Tensor]


def _state(encoder: nn.Module) -> State:
    return {key: value.detach().clone() for key, value in encoder.state_dict().items()}


def _same(first: State, second: State) -> bool:
    """True for equal bits; NaN equals NaN (an unfilled table)."""
    return first.keys() == second.keys() and all(torch.equal(*_bits(first[key], second[key])) for key in first)


def _bits(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return (first.nan_to_num(0.5), second.nan_to_num(0.5)) if first.is_floating_point() else (first, second)


def _required(subject: Subject, encoder: BrainEncoder) -> list[str]:
    """Keys that a file must have, and that have numbers."""
    allowed = subject.full_card.weights.allow_missing
    keys = [key for key, value in encoder.state_dict().items() if key not in allowed and value.numel()]
    if not keys:
        raise NotApplicable("the encoder has no weights")
    return keys


def _refused(change: Callable[[State, str], State]) -> Callable[[Subject], str]:
    """Make a check that a changed state is refused with a typed error, and that nothing of it is loaded."""

    def check(subject: Subject) -> str:
        encoder = subject.fresh()
        before = _state(encoder)
        key = _required(subject, encoder)[-1]
        shifted = {k: v + 1 if v.is_floating_point() else v for k, v in before.items()}
        try:
            encoder.load_weights(change(shifted, key))
        except NeuroFlamingoError as refusal:
            if not _same(_state(encoder), before):
                raise Failure("the file is refused, but part of it was loaded before") from refusal
            return refusal.seen or refusal.what
        except Exception as error:
            raise Failure(f"not refused with a typed error, but raises {type(error).__name__}: {error}") from error
        raise Failure(f"is loaded silently (tried with '{key}')")

    check.__doc__ = change.__doc__
    return check


def missing(state: State, key: str) -> State:
    """A tensor is missing."""
    return {k: v for k, v in state.items() if k != key}


def surplus(state: State, key: str) -> State:
    """A tensor is left over."""
    return state | {"surplus.of.another.model": state[key]}


def shape(state: State, key: str) -> State:
    """A tensor has one row too many."""
    value = state[key].reshape(1) if state[key].ndim == 0 else state[key]
    return state | {key: torch.cat([value, value[:1]])}


def other_architecture(state: State, key: str) -> State:
    """The file belongs to another architecture: as many tensors, under other names."""
    return {f"another.{k}": v for k, v in state.items()}


def not_finite(state: State, key: str) -> State:
    """A weight is NaN."""
    floating = [k for k, v in state.items() if v.is_floating_point() and v.numel()]
    if not floating:
        raise NotApplicable("no weight is a floating point number")
    chosen = key if key in floating else floating[-1]
    value = state[chosen].clone()
    value.view(-1)[-1] = torch.nan
    return state | {chosen: value}


def truncated_file(subject: Subject) -> str:
    """A truncated file is refused before anything is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = _save(subject, Path(folder))
        whole = path.read_bytes()
        for length in (len(whole) - 1, len(whole) // 2, 4, 0):
            path.write_bytes(whole[:length])
            try:
                read_weights(_without_hash(subject), path)
            except ModelError:
                continue
            raise Failure(f"a file of {length} of {len(whole)} bytes is read")
    return "refused at four lengths"


def other_hash(subject: Subject) -> str:
    """A file with a hash other than the card's is refused, and so is a missing file."""
    with tempfile.TemporaryDirectory() as folder:
        path = _save(subject, Path(folder))
        weights = subject.full_card.weights.model_copy(update={"sha256": "0" * 64})
        card = subject.full_card.model_copy(update={"weights": weights})
        for file, error in ((path, ModelError), (path.with_name("gone.safetensors"), NotFoundError)):
            try:
                read_weights(card, file)
            except error:
                continue
            raise Failure(f"{file.name} is accepted, whatever its hash")
    return "refused"


def _save(subject: Subject, folder: Path) -> Path:
    encoder = subject.fresh()
    _required(subject, encoder)
    path = folder / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in _state(encoder).items()}, path)
    return path


def _without_hash(subject: Subject) -> Any:
    weights = subject.full_card.weights.model_copy(update={"sha256": None})
    return subject.full_card.model_copy(update={"weights": weights})


def reload(subject: Subject) -> str:
    """Weights saved and loaded into a differently initialised instance give equal tokens, bit by bit."""
    encoder, other = subject.fresh(), subject.fresh(seed=1)
    with tempfile.TemporaryDirectory() as folder:
        other.load_weights(read_weights(_without_hash(subject), _save(subject, Path(folder))))
    x = subject.input()
    expected, tokens = subject.encode(x, encoder).tokens, subject.encode(x, other.train(False)).tokens
    if not torch.equal(expected, tokens):
        raise Failure(f"tokens differ by {difference(expected, tokens):.1e}: something that matters is not in the file")
    return "the same bits"


def no_gradient(subject: Subject) -> str:
    """In a frozen encoder no parameter takes a gradient, and the tokens carry none."""
    encoder = subject.fresh().freeze()
    open_ones = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    if open_ones:
        raise Failure(f"{len(open_ones)} parameters of the frozen encoder take gradients, first {open_ones[0]}")
    if encoder(subject.input()).tokens.requires_grad:
        raise Failure("tokens of the frozen encoder carry gradients")
    return "no gradient anywhere"


def step_changes_nothing(subject: Subject) -> str:
    """Training steps of a model around a frozen encoder change none of its parameters and buffers."""
    encoder = subject.fresh().freeze()
    head = nn.Linear(subject.card.output.width, 1)
    model = nn.ModuleDict({"encoder": encoder, "head": head}).train()
    before = _everything(encoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for seed in range(2):
        head(encoder(subject.input(2, seed=seed)).tokens).square().mean().backward()
        optimizer.step()
    after = _everything(encoder)
    changed = [name for name in before if not _same({name: before[name]}, {name: after[name]})]
    if changed:
        raise Failure(f"{len(changed)} parameters or buffers changed, first {changed[0]}")
    return f"{len(before)} parameters and buffers as before"


def _everything(encoder: nn.Module) -> State:
    """All parameters and buffers, also those that are not saved."""
    named = (*encoder.named_parameters(), *encoder.named_buffers())
    return {name: value.detach().clone() for name, value in named}


def unfreeze(subject: Subject) -> str:
    """Unfreezing opens what the card declares and nothing else, and can be undone."""
    prefixes = subject.full_card.trainable
    encoder = subject.fresh().freeze().unfreeze()
    names = {name: parameter.requires_grad for name, parameter in encoder.named_parameters()}
    if not names:
        raise NotApplicable("the encoder has no parameters")
    idle = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)]
    if idle:
        raise Failure(f"the card declares '{idle[0]}' trainable, but no parameter's name begins so")
    wrong = [name for name, is_open in names.items() if is_open != (not prefixes or name.startswith(prefixes))]
    if wrong:
        raise Failure(f"unfreezing {'opens' if names[wrong[0]] else 'leaves closed'} {wrong[0]}")
    if not encoder.train().training:
        raise Failure("the encoder stays in eval mode after unfreezing")
    if any(parameter.requires_grad for parameter in encoder.freeze().parameters()):
        raise Failure("freezing again leaves parameters open")
    return f"opens {sum(names.values())} of {len(names)} parameters"


def golden_cases(subject: Subject) -> Iterator[tuple[str, dict[str, Any], State, State]]:
    """Yield the golden cases of this encoder in the fixtures folder: name, description, weights, inputs and outputs.

    A case is `NAME.json` with `encoder` (the card's name), and optionally `config` (the constructor's second argument)
    and `tolerance`; `NAME.weights.safetensors`; `NAME.io.safetensors` with `input`, `tokens`, and side tables under
    the names of the methods that take them (`set_...`).
    """
    assert subject.fixtures is not None
    if not subject.fixtures.is_dir():
        raise NotFoundError(f"there is no folder {subject.fixtures}", hint="correct --fixtures")
    for path in sorted(subject.fixtures.glob("*.json")):
        case = json.loads(path.read_text(encoding="utf-8"))
        if case.get("encoder") == subject.full_card.name:
            stem = path.with_suffix("")
            yield path.stem, case, load_file(f"{stem}.weights.safetensors"), load_file(f"{stem}.io.safetensors")


def golden(subject: Subject) -> str:
    """Golden cases, if a folder of them is given, give the stored tokens."""
    if subject.fixtures is None:
        raise NotApplicable("no golden cases were given (--fixtures)")
    worst, count = 0.0, 0
    for name, case, weights, io in golden_cases(subject):
        encoder, x = _built_for(subject, case, io)
        encoder.load_weights(weights).freeze()
        for key in (key for key in io if key.startswith("set_")):
            getattr(encoder, key)(io[key])
        x = x if x.ndim == 2 + len(subject.card.scan.axes) else x[:, None]
        tokens, expected = subject.encode(x, encoder).tokens, io["tokens"]
        expected = expected if expected.ndim == 4 else expected[:, None]
        far, tolerance = difference(expected, tokens), float(case.get("tolerance", 2e-5))
        if far > tolerance:
            raise Failure(f"{name}: tokens differ by {far:.1e} (allowed {tolerance:g})")
        worst, count = max(worst, far), count + 1
    if not count:
        raise NotApplicable(f"no golden case of '{subject.full_card.name}' in {subject.fixtures}")
    return f"{count} cases, largest difference {worst:.1e}"


def _built_for(subject: Subject, case: dict[str, Any], io: State) -> tuple[BrainEncoder, Tensor]:
    """Instance of a golden case's size, and the case's input."""
    axes, x = subject.card.scan.axes, io["input"]
    sizes = dict(zip((axis.name for axis in axes), x.shape[-len(axes) :], strict=True))
    card = subject.full_card
    if not card.scan.accepts(tuple(sizes.values())) or "config" in case:
        card = card.shrunk(sizes, width=io["tokens"].shape[-1], tokens=io["tokens"].shape[-2])
    takes_card = bool(inspect.signature(subject.type).parameters)
    arguments = ([card] if takes_card else []) + ([case["config"]] if "config" in case else [])
    return subject.type(*arguments), x


CHECKS = (
    Check("loading.missing", 6, _refused(missing)),
    Check("loading.surplus", 6, _refused(surplus)),
    Check("loading.shape", 6, _refused(shape)),
    Check("loading.other_architecture", 6, _refused(other_architecture)),
    Check("loading.not_finite", 6, _refused(not_finite)),
    Check("loading.truncated_file", 6, truncated_file),
    Check("loading.other_hash", 6, other_hash),
    Check("freezing.no_gradient", 7, no_gradient),
    Check("freezing.step_changes_nothing", 7, step_changes_nothing),
    Check("freezing.unfreeze", 7, unfreeze),
    Check("parity.reload", 10, reload),
    Check("parity.golden", 10, golden),
)
