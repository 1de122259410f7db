"""Published encoders, number by number: every case of a folder in the format of tests/parity/encoders.

A case is NAME.json with NAME.weights.safetensors and NAME.io.safetensors; `--encoder-fixtures DIR` names another
folder.
A folder without a case, and a case of an encoder that no check here knows, fail.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

from neuroflamingo_encoders.card import EncoderCard
from neuroflamingo_encoders.contract import BrainEncoder
from neuroflamingo_encoders.families.brain_jepa.network import BrainJepaEncoder
from neuroflamingo_encoders.families.brainlm.network import BrainLmEncoder
from neuroflamingo_encoders.families.brainlm.vitmae import BrainLmVitMaeEncoder
from neuroflamingo_encoders.families.brainmt.network import BrainMtEncoder
from neuroflamingo_encoders.families.swin4d.network import NeuroStormEncoder, SwiftEncoder
from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_preprocessing.spec import Axis

COPY = Path(__file__).parent / "encoders"
Results = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Case:
    """One published encoder at a small size."""

    name: str
    spec: dict[str, Any] = field(repr=False)
    weights: Results = field(repr=False)
    io: Results = field(repr=False)

    def card(self, name: str, **axes: int) -> EncoderCard:
        """The released card with this case's sizes."""
        card = encoder_card(name)
        sizes = tuple(Axis(name=axis.name, size=axes.get(axis.name, axis.size)) for axis in card.scan.axes)
        return card.model_copy(update={"scan": card.scan.model_copy(update={"axes": sizes})})


def folder(config: pytest.Config) -> Path:
    given = config.getoption("--encoder-fixtures")
    return (config.invocation_params.dir / given).resolve() if given else COPY


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case_path" not in metafunc.fixturenames:
        return
    where = folder(metafunc.config)
    found = sorted(path for path in where.glob("*.json") if path.name != "manifests.json")
    if not found:
        raise pytest.UsageError(f"no golden numbers of encoders in {where}")
    metafunc.parametrize("case_path", found, ids=[path.stem for path in found])


def ready(encoder: BrainEncoder, weights: Results) -> Any:
    return encoder.load_weights(weights).freeze()


def four_d(case: Case, name: str, module: type[BrainEncoder]) -> Results:
    config, x = case.spec["config"], case.io["input"]
    sizes = dict(zip(("x", "y", "z", "time"), config["img_size"], strict=True))
    encoder: Any = ready(module(case.card(name, **sizes), config), case.weights)  # type: ignore[call-arg]
    stages = [rearrange(s, "n x y z t w -> n w x y z t") for s in encoder.stages(x)]
    return {f"stage.{i}": s for i, s in enumerate(stages)} | {"tokens": encoder(x[:, None]).tokens[:, 0]}


def brainmt(case: Case) -> Results:
    config, x = case.spec["config"], case.io["input"]
    _, time, _, y, across, z = x.shape
    encoder = ready(BrainMtEncoder(case.card("brainmt", time=time, y=y, x=across, z=z), config), case.weights)
    tokens = encoder(x[:, None]).tokens[:, 0]
    first = tokens[:, 0]
    return {
        "stem": encoder.stem(x.flatten(0, 1)),
        "after_mamba": encoder.scan(x),
        "tokens": tokens,
        "cls": first,
        "head": encoder.head(first),
    }


def brain_jepa(case: Case) -> Results:
    x = case.io["input"]  # its channel axis of one stands where the scans are counted
    card = case.card("brain-jepa-vitb", parcel=x.shape[2], time=x.shape[3])
    encoder = ready(BrainJepaEncoder(card, case.spec["config"]), case.weights)
    encoder.set_gradient(case.io["gradient"][0])
    return {"pos_embed": encoder.pos_embed_proj(encoder.gradient), "tokens": encoder(x).tokens[:, 0]}


def brainlm(case: Case) -> Results:
    signal, xyz = case.io["signal"], case.io["xyz"]
    card = case.card("brainlm-13m", parcel=signal.shape[1], time=signal.shape[2])
    layers = case.spec["config"]["decoder_num_hidden_layers"]
    assert layers <= 2, "the card passes over a decoder of two layers"
    encoder = ready(BrainLmEncoder(card, case.spec["config"]), case.weights)
    states = encoder.vit.hidden_states(signal, xyz)
    out = {f"hidden_states.{i}": state for i, state in enumerate(states)} | {"embeddings": states[0]}
    rows = []
    for one, place in zip(signal, xyz, strict=True):
        encoder.set_coordinates(place)
        rows.append(encoder(one[None, None]).tokens[0])
    order = case.io["masked.noise"].argsort(1)
    kept = order[:, : int(order.shape[1] * (1 - case.spec["masked_ratio"]))]
    masked = encoder.vit.layernorm(encoder.vit.hidden_states(signal, xyz, kept)[-1])
    return out | {"tokens": torch.cat(rows), "masked.tokens": masked}


def brainlm_vitmae(case: Case) -> Results:
    signal = case.io["signal"]
    _, parcels, frames = signal.shape
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size")
    config = {name: case.spec["config"][name] for name in (*names, "layer_norm_eps")}
    encoder = BrainLmVitMaeEncoder(
        case.card("brainlm-vitmae-111m", parcel=parcels, time=frames),
        config,
        parcels=parcels,
        frames=frames,
        keep_padding=True,
    )
    ready(encoder, case.weights).set_coordinates(case.io["xyz"])
    return {
        "parcel_order": encoder.order,
        "pixel_values_padded": encoder.picture(signal),
        "tokens_raster": torch.cat([encoder(one[None, None]).tokens[0] for one in signal]),
    }


CHECKS: dict[str, tuple[Callable[[Case], Results], float]] = {
    "swift": (lambda case: four_d(case, "swift", SwiftEncoder), 1e-5),
    "neurostorm": (lambda case: four_d(case, "neurostorm", NeuroStormEncoder), 2e-5),
    "brainmt": (brainmt, 2e-5),
    "brain-jepa": (brain_jepa, 1e-5),
    "brainlm (native / old_13M layout)": (brainlm, 1e-5),
    "brainlm (vitmae_111M / vitmae_650M layout)": (brainlm_vitmae, 1e-5),
}
"""Upstream's name to what is computed for it and the absolute tolerance; the relative one is ten times that."""

NOT_COMPUTED = ("input", "signal", "xyz", "gradient", "noise", "ids_restore", "mask", "logits", "loss", "returned")
"""Inputs, and what only the training of the published model needs (its decoder is no part of an encoder)."""


@torch.no_grad()
def test_encoder_gives_the_published_numbers(case_path: Path) -> None:
    spec = json.loads(case_path.read_text())
    assert spec["encoder"] in CHECKS, f"{case_path.name}: no check here knows the encoder {spec['encoder']!r}"
    stem = case_path.with_suffix("")
    case = Case(case_path.stem, spec, load_file(f"{stem}.weights.safetensors"), load_file(f"{stem}.io.safetensors"))
    compute, tolerance = CHECKS[spec["encoder"]]
    results = compute(case)
    assert {"tokens", "tokens_raster"} & set(results)
    for name, value in results.items():
        if name in case.io:
            torch.testing.assert_close(
                value, case.io[name], atol=tolerance, rtol=10 * tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
    skipped = [n for n in case.io if n not in results and not any(part in n for part in NOT_COMPUTED)]
    inner = [n for n in skipped if n.startswith(("hidden_states_raster", "mamba_layer"))]
    assert skipped == inner, f"{case.name}: nothing was computed for {set(skipped) - set(inner)}"


RELEASED = {
    "brainlm_old_13M": "brainlm-13m",
    "brainlm_vitmae_111M": "brainlm-vitmae-111m",
    "brainlm_vitmae_650M": "brainlm-vitmae-650m",
    "brainmt_default": "brainmt",
    "swift_embed36": "swift",
    "neurostorm_embed36": "neurostorm",
    "brain_jepa_vitb": "brain-jepa-vitb",
}


@pytest.mark.parametrize("manifest", RELEASED)
def test_released_sizes_have_the_published_names_and_shapes(manifest: str, request: pytest.FixtureRequest) -> None:
    """Built without memory, then given tensors of the manifest: the strict loader takes exactly those."""
    from importlib import import_module

    path = folder(request.config) / "manifests.json"
    path = path if path.exists() else COPY / "manifests.json"
    listed = json.loads(path.read_text())["models"][manifest]
    card = encoder_card(RELEASED[manifest])
    module, name = card.implementation.split(":")
    with torch.device("meta"):
        encoder: BrainEncoder = getattr(import_module(module), name)(card)
        state = {key: torch.empty(shape[0] if isinstance(shape[0], list) else shape) for key, shape in listed.items()}
    assert sum(p.numel() for p in encoder.parameters()) == card.cost.parameters
    encoder.load_weights(state)
    key = next(k for k in state if "decoder" not in k and k.endswith("weight"))
    with pytest.raises(Exception, match="1 missing"):
        encoder.load_weights({k: v for k, v in state.items() if k != key})
    with pytest.raises(Exception, match="1 unexpected"):
        encoder.load_weights(state | {"surplus.weight": state[key]})
