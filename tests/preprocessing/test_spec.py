"""The declaration of an encoder's input: frozen, serialisable, hashed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from pydantic import ValidationError

from neuroflamingo_preprocessing.errors import ModelError
from neuroflamingo_preprocessing.spec import Axis, ScanSpec, Step
from neuroflamingo_preprocessing.structural.template import GRID_SHAPE, grid_affine


def test_round_trips_keep_value_hash_and_digest(spec: ScanSpec) -> None:
    for copy in (ScanSpec.model_validate_json(spec.model_dump_json()), pickle.loads(pickle.dumps(spec))):
        assert copy == spec
        assert hash(copy) == hash(spec)
        assert copy.digest == spec.digest


def test_digest_is_stable_across_machines() -> None:
    spec = ScanSpec(modality="tokens", axes=(Axis(name="token"), Axis(name="width", size=8)))
    assert spec.digest == "ebc8a25f09fcd77f288b3a668b12ee24ae50c73ba3429179cd78ca5f032efdb6"


def test_digest_sees_every_constant_but_not_their_order() -> None:
    one = Step(name="clip", constants={"low": 0.5, "high": 99.5})  # type: ignore[arg-type]
    assert one.digest == Step.named("clip", high=99.5, low=0.5).digest
    assert one.digest != Step.named("clip", high=99.5, low=0.6).digest
    assert one.model_dump()["constants"] == {"high": 99.5, "low": 0.5}


def test_frozen_and_closed(spec: ScanSpec) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec.fill = 1.0
    with pytest.raises(ValidationError, match="spacings"):
        ScanSpec(modality="tokens", axes=(), spacings=(1, 1, 1))  # type: ignore[call-arg]


def test_contradictions_are_refused() -> None:
    x = Axis(name="x", size=4)
    with pytest.raises(ValidationError, match="named twice"):
        ScanSpec(modality="image2d", axes=(x, x))
    with pytest.raises(ValidationError, match="2 channels"):
        ScanSpec(modality="image2d", axes=(Axis(name="channel", size=1), x), channels=("T1w", "T2w"))
    with pytest.raises(ValidationError, match="together"):
        ScanSpec(modality="image2d", axes=(x,), spacing_mm=(1, 1, 1))
    with pytest.raises(ValidationError, match="size or a range"):
        Axis(name="x", size=4, maximum=8)


@pytest.mark.parametrize(("size", "fits"), [(16, True), (32, True), (8, False), (48, False), (17, False)])
def test_axis_ranges(size: int, fits: bool) -> None:
    assert Axis(name="x", minimum=16, maximum=32, multiple_of=16).accepts(size) is fits


def test_shapes_are_checked_by_axis(spec: ScanSpec) -> None:
    assert spec.accepts((1, 56, 64, 56))
    assert not spec.accepts((1, 64, 56, 56))
    assert not spec.accepts((56, 64, 56))


def test_grid_of_the_embedded_encoder_is_the_template_grid(spec: ScanSpec) -> None:
    assert spec.grid_shape == GRID_SHAPE
    np.testing.assert_array_equal(spec.grid_affine, grid_affine())


def test_missing_grid_and_constants_are_typed_errors() -> None:
    tokens = ScanSpec(modality="tokens", axes=(Axis(name="token"), Axis(name="width", size=8)))
    with pytest.raises(ModelError, match="no fixed grid"):
        _ = tokens.grid_shape
    with pytest.raises(ModelError, match="no grid in world space"):
        _ = tokens.grid_affine
    with pytest.raises(ModelError, match="lacks the constant 'fwhm_mm'"):
        _ = Step.named("gaussian_antialias")["fwhm_mm"]
