"""Strict loading of published OpenFlamingo weights; anything unexpected is an error that names it.

Three layouts are read, flat or nested under `model_state_dict`: OpenFlamingo v2 (trained weights and input
embeddings), v1 and Med-Flamingo (the same tensors under one or two more names), and Multimodal-GPT (low-rank updates
for a v1 model). Sources: https://github.com/mlfoundations/open_flamingo, https://github.com/open-mmlab/Multimodal-GPT.

Differs from upstream, which loads with `strict=False`: two names of one tensor must agree, no tensor is skipped unless
it is on the list below, and nothing is written into the model before the whole file has been checked.

Left over without error (and listed in the report): the vision tower if it is not the model's encoder, buffers that
today's language models compute themselves, and the trainer's own entries (epoch, optimizer, schedule, tuning_config).
Missing without error: frozen weights (language model, encoder); in a file of low-rank updates also the resampler or
the gated blocks as a whole; rows of the embeddings after the special tokens (upstream cuts a table that the language
model had padded to a round number of rows, this package does not).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from neuroflamingo.checkpoints.multimodal_gpt import LowRankUpdate, input_first_names, lora_part, merged, pair_updates
from neuroflamingo.checkpoints.openflamingo_names import (
    MISFIT,
    ModelNames,
    gated_layers,
    listing,
    plain_name,
    read_entries,
)
from neuroflamingo.model.fusion import GATED
from neuroflamingo_preprocessing.errors import ModelError

VISION, ENCODER = "vision_encoder.", "encoder."


@dataclass(frozen=True)
class LoadReport:
    """Outcome for every tensor.

    Attributes:
        loaded: names in the model that now hold the file's values; tied names count once each.
        merged: names of weights to which a low-rank update was added.
        missing: names in the model that the file does not have; they keep their values.
        left_over: names in the file that were not used.
        notes: remarks for the user, one sentence each.
    """

    loaded: tuple[str, ...]
    merged: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        loaded = [f"{part} {count}" for part, count in _parts(self.loaded)]
        lines = [": ".join([f"loaded: {len(self.loaded)} tensors", *([", ".join(loaded)] if loaded else [])])]
        for title, names in (("merged", self.merged), ("missing", self.missing), ("left over", self.left_over)):
            lines.append(f"{title}: {len(names) or 'none'}")
            lines += [f"  {pattern} ({count})" for pattern, count in _patterns(names)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@dataclass
class _Plan:
    """Values to write and their targets, with notes."""

    names: ModelNames
    values: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    updates: dict[str, LowRankUpdate] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def load_openflamingo(model: nn.Module, state_dict: Mapping[str, Any], *, outline: bool = False) -> LoadReport:
    """Load an OpenFlamingo, Med-Flamingo or Multimodal-GPT checkpoint into a model of the same shape.

    A Multimodal-GPT file holds updates only: load the v1 file first, then this one, once (loading it again would add
    its updates a second time). They are merged into the weights; the logits equal those of the attached adapters.

    Args:
        model: a `NeuroFlamingo`; modified in place, or not at all if an error is raised.
        state_dict: the checkpoint as its trainer saved it: names with tensors, or a dictionary with them under
            `model_state_dict`.
        outline: the model may be without memory: its tensors there are compared with the file's and stay so.

    Returns:
        What was loaded, merged, missing and left over.

    Raises:
        ModelError: names that are not understood, a needed tensor that is missing, shapes that differ, or two copies
            of one tensor that disagree. Exit code 65.
    """
    entries = read_entries(state_dict)
    plan = _Plan(ModelNames(model), left_over=list(entries.run_entries))
    plan.rows = _embedding_rows(model, plan.names)
    _sort(plan, entries.tensors, entries.tuning)
    _check_complete(plan, entries.tensors)
    _check_shapes(plan, input_first_names(model), outline=outline)
    _check_ties(plan)
    if plan.rows and not plan.rows.keys() & plan.values.keys():
        plan.notes.append("the file has no embeddings: the rows of the special tokens were left as they are")
    return _write(plan, input_first_names(model))


def _embedding_rows(model: nn.Module, names: ModelNames) -> dict[str, int]:
    """Number of rows in use of each embedding table: those up to the special tokens, if the model knows them."""
    config, text = getattr(model, "config", None), getattr(model, "lang_encoder", None)
    ids = [getattr(config, name, None) for name in ("image_token_id", "endofchunk_token_id")]
    known = [number for number in ids if isinstance(number, int)]
    if text is None or len(known) < len(ids):
        return {}
    tables = [text.get_input_embeddings(), text.get_output_embeddings()]
    weights = {id(weight) for table in tables if table is not None for weight in table.parameters()}
    return {name: max(known) + 1 for name, value in names.tensors.items() if id(value) in weights}


def _sort(plan: _Plan, tensors: Mapping[str, Tensor], tuning: Mapping[str, Any] | None) -> None:
    """Classify every tensor of the file: a weight, an update, left over, or an error."""
    lora: dict[tuple[str, str], Tensor] = {}
    sources: dict[tuple[str, str], str] = {}
    vision: dict[str, Tensor] = {}
    unknown = []
    for key, value in tensors.items():
        name = plain_name(key)
        update = lora_part(name)
        target = plan.names.resolve(update[0] if update else name)
        if name.startswith(VISION) and not update:
            vision[key] = value
        elif target is None:
            if plan.names.is_recomputed(name, value):
                plan.left_over.append(key)
            else:
                unknown.append(key)
        elif update:
            _agree(lora, sources, (target, update[1]), value, key)
        else:
            _agree(plan.values, plan.sources, target, value, key)
    if unknown:
        raise _unknown(plan.names, unknown)
    plan.updates = pair_updates(lora, tuning)
    if lora and tuning is None:
        plan.notes.append("the file has no tuning_config: the updates were scaled by alpha / r = 1")
    _sort_vision(plan, vision)


def _sort_vision(plan: _Plan, vision: Mapping[str, Tensor]) -> None:
    """Load the vision tower if it is the model's encoder; otherwise it is left over as a whole."""
    if not vision:
        return
    tower = {key: plain_name(key).removeprefix(VISION) for key in vision}
    if any(name.startswith("visual.") for name in tower.values()):  # v1 kept the whole CLIP: its text half has no use
        tower = {key: name.removeprefix("visual.") for key, name in tower.items() if name.startswith("visual.")}
    mine = {name: value for name, value in plan.names.tensors.items() if name.startswith(ENCODER)}
    places = {}
    for key, name in tower.items():
        ends = [target for target in mine if target == ENCODER + name or target.endswith("." + name)]
        if len(ends) == 1 and mine[ends[0]].shape == vision[key].shape:
            places[key] = ends[0]
    if len(places) < len(tower) or len(set(places.values())) < len(tower):
        plan.left_over += vision
        plan.notes.append("the vision tower in the file is not this model's encoder and was left out")
        return
    for key, target in places.items():
        _agree(plan.values, plan.sources, target, vision[key], key)
    plan.left_over += [key for key in vision if key not in places]


def _agree(values: dict, sources: dict, place: Any, value: Tensor, key: str) -> None:
    """Keep a value; a second one for the same target must be equal."""
    if place in values and not (values[place].shape == value.shape and torch.equal(values[place], value)):
        raise ModelError(
            "two names of one tensor hold different values",
            expected="equal copies",
            seen=f"{sources[place]} and {key}",
            hint="the file was edited or merged wrongly; use the original",
            exit_code=MISFIT,
        )
    values.setdefault(place, value)
    sources.setdefault(place, key)


def _unknown(names: ModelNames, keys: list[str]) -> ModelError:
    theirs, mine = gated_layers(map(plain_name, keys)), names.gated_layers()
    if theirs and not set(theirs) <= set(mine):
        expected = f"gated cross-attention in the decoder layers {_numbers(mine)}"
        hint = f"assemble the model with cross_attn_every_n_layers={theirs[0] + 1}, or use the same language model"
    else:
        expected = "names of the resampler, the gated blocks and this language model"
        hint = "use the language model and the resampler options that the checkpoint was trained with"
    return ModelError(
        f"{len(keys)} tensors of the checkpoint have no place in this model",
        expected=expected,
        seen=listing(keys),
        hint=hint,
        exit_code=MISFIT,
    )


def _check_complete(plan: _Plan, tensors: Mapping[str, Tensor]) -> None:
    """Check that the resampler and the gated blocks are complete."""
    lacking = []
    for belongs in (lambda name: name.startswith("perceiver."), lambda name: GATED in name):
        group = [name for name in plan.names.tensors if belongs(name)]
        absent = [name for name in group if name not in plan.values]
        if absent and not (plan.updates and len(absent) == len(group)):
            lacking += absent
    if lacking:
        raise ModelError(
            f"the checkpoint lacks {len(lacking)} of the tensors that a trained model needs",
            expected=listing(lacking),
            seen=f"{len(tensors)} tensors, gated cross-attention in the layers {_numbers(gated_layers(plan.values))}",
            hint="the file is truncated or of another model; compare cross_attn_every_n_layers and the resampler",
            exit_code=MISFIT,
        )


def _check_shapes(plan: _Plan, input_first: set[str], *, outline: bool) -> None:
    faults, hint = [], "use the language model, tokenizer and encoder width that the checkpoint was trained with"
    for target, value in plan.values.items():
        mine = plan.names.tensors[target]
        same_kind = mine.is_floating_point() == value.is_floating_point() and (outline or not mine.is_meta)
        if mine.shape == value.shape and same_kind:
            continue
        if (
            same_kind
            and mine.shape[1:] == value.shape[1:]
            and plan.rows.get(target, len(mine)) <= len(value) < len(mine)
        ):
            plan.notes.append(f"{target}: {len(value)} of {len(mine)} rows are in the file, the rest was left as it is")
            continue
        faults.append(f"{plan.sources[target]} {_shape(value)}, in the model {_shape(mine)}")
        if value.ndim == 2 and mine.ndim == 2 and value.shape[1] == mine.shape[1] and GATED not in target:
            hint = "add the special tokens as upstream does: <|endofchunk|>, <image>, then <PAD> if there was none"
    for target, update in plan.updates.items():
        shape = (update.up.shape[0], update.down.shape[1])
        shape = shape[::-1] if target in input_first else shape
        if tuple(plan.names.tensors[target].shape) != shape:
            faults.append(f"update of {target} {shape}, in the model {_shape(plan.names.tensors[target])}")
    if faults:
        raise ModelError(
            f"{len(faults)} tensors of the checkpoint do not fit the model",
            expected="equal shapes and kinds of numbers",
            seen=listing(faults),
            hint=hint,
            exit_code=MISFIT,
        )


def _check_ties(plan: _Plan) -> None:
    """Check that names of one tensor in the model (a tied output head) have the same value in the file."""
    for target, group in plan.names.tied().items():
        if target in plan.values:
            for other in group:
                if other in plan.values:
                    first = {target: plan.values[target]}
                    _agree(first, {target: plan.sources[target]}, target, plan.values[other], plan.sources[other])


@torch.no_grad()
def _write(plan: _Plan, input_first: set[str]) -> LoadReport:
    tensors = plan.names.tensors
    for target, value in plan.values.items():
        place = tensors[target][: len(value)] if target in plan.rows else tensors[target]
        place.copy_(value)
    for target, update in plan.updates.items():
        tensors[target].copy_(merged(tensors[target], update, input_first=target in input_first))
    tied = plan.names.tied()
    filled = {name for target in plan.values for name in tied.get(target, (target,))}
    return LoadReport(
        loaded=tuple(name for name in tensors if name in filled),
        merged=tuple(plan.updates),
        missing=tuple(name for name in tensors if name not in filled and name not in plan.updates),
        left_over=tuple(plan.left_over),
        notes=tuple(plan.notes),
    )


def _parts(names: Iterable[str]) -> list[tuple[str, int]]:
    """Number of names per part of the model."""

    def part(name: str) -> str:
        top = name.split(".")[0]
        return "gated blocks" if GATED in name else {"perceiver": "resampler", "lang_encoder": "LM"}.get(top, top)

    return sorted(Counter(map(part, names)).items())


def _patterns(names: Iterable[str]) -> list[tuple[str, int]]:
    """Names with layer numbers replaced by `*`, and the number of names each stands for."""
    return sorted(Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name, count=1) for name in names).items())


def _numbers(layers: list[int]) -> str:
    return listing(map(str, layers), limit=40) or "none"


def _shape(value: Tensor) -> str:
    kind = str(value.dtype).removeprefix("torch.")
    return f"{kind} {list(value.shape)}{' without memory' if value.is_meta else ''}"
