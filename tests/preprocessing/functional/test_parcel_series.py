"""Parcel series: each published normalisation against a plain statement of it, windows, repetition times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, OutputError, ScanError, UsageError
from neuroflamingo_preprocessing.functional.parcel_series import RobustScaling, prepare_series, resample_in_time
from neuroflamingo_preprocessing.spec import Axis, Parcellation, RepetitionTime, ScanSpec, Step

PARCELS = 5


def spec(*steps: Step, frames: int | None = 20, rate: RepetitionTime | None = None, parcels: int = PARCELS) -> ScanSpec:
    time = Axis(name="time", size=frames) if frames else Axis(name="time", minimum=3)
    return ScanSpec(
        modality="parcels",
        axes=(Axis(name="parcel", size=parcels), time),
        parcellation=Parcellation(identifier="P5", row_order="ascending label"),
        repetition_time=rate,
        steps=(Step.named("parcel_mean"), *steps),
    )


def series(frames: int = 20, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spread = np.array([1, 5, 20, 100, 300])[:, None]
    return (9000 + 500 * rng.standard_normal((PARCELS, 1)) + spread * rng.standard_normal((PARCELS, frames))).astype(
        np.float32
    )


def prepared(values: np.ndarray, wanted: ScanSpec, seconds: float | None = None, scaling: Any = None):
    windows, warnings = prepare_series(values, seconds, wanted, "run", scaling)
    return list(windows), warnings


def quartiles(values: np.ndarray) -> tuple[np.ndarray, ...]:
    low, middle, high = np.percentile(values, (25, 50, 75), axis=1, keepdims=True)
    return low, middle, high


def test_normalisations_are_what_they_say() -> None:
    x = series().astype(np.float64)
    centred = x - x.mean(1, keepdims=True)
    low, middle, high = quartiles(centred)
    wanted = {
        "robust_fixed": (centred - middle) / (high - low),
        "robust_as_published": centred - middle / (high - low),
        "zscore_parcel": centred / x.std(1, keepdims=True),
        "zscore_run": (x - x.mean()) / x.std(),
    }
    for name, value in wanted.items():
        for gain in (1.0, 7.0):
            ((window,), _) = prepared(series(), spec(Step.named(name, gain=gain)))
            assert window.tensor.dtype == np.float32 and (window.first_frame, window.frames) == (0, 20)
            np.testing.assert_allclose(window.tensor, gain * value, rtol=1e-4, atol=2e-4)
    ((window,), warnings) = prepared(series(), spec())
    assert np.array_equal(window.tensor, series()) and warnings == []


def test_a_stored_vector_is_reproduced() -> None:
    """By hand: mean 4, median of what is left -1, quartiles -2 and 1."""
    x = np.tile(np.array([2, 3, 3, 5, 11, 2, 3, 3, 5, 3], np.float32), (PARCELS, 1))
    ((window,), _) = prepared(x, spec(Step.named("robust_fixed", gain=3.0), frames=10))
    low, middle, high = np.percentile(x[0] - 4, (25, 50, 75))
    assert (low, middle, high) == (-1.0, -1.0, 0.5)
    np.testing.assert_allclose(window.tensor[0], [-2, 0, 0, 4, 16, -2, 0, 0, 4, 0], atol=1e-6)


def test_a_scaling_fitted_on_a_training_set(tmp_path: Path) -> None:
    runs = [series(60, seed) for seed in range(4)]
    scaling = RobustScaling.fit(runs)
    pooled = np.concatenate([r.astype(np.float64) - r.mean(1, keepdims=True, dtype=np.float64) for r in runs], axis=1)
    low, middle, high = quartiles(pooled)
    np.testing.assert_allclose(scaling.spread, (high - low)[:, 0])
    assert (scaling.runs, scaling.frames) == (4, 240)
    scaling.save(tmp_path / "s.json")
    again = RobustScaling.load(tmp_path / "s.json")
    assert np.array_equal(again.median, scaling.median) and np.array_equal(again.spread, scaling.spread)
    with pytest.raises(OutputError):
        scaling.save(tmp_path / "s.json")
    ((window,), warnings) = prepared(runs[0][:, :20], spec(Step.named("robust_fixed")), scaling=again)
    x = runs[0][:, :20].astype(np.float64)
    np.testing.assert_allclose(window.tensor, (x - x.mean(1, keepdims=True) - middle) / (high - low), atol=1e-3)
    assert warnings == []
    ((_,), warnings) = prepared(series(), spec(Step.named("robust_fixed")))
    assert "run's own quartiles" in warnings[0]
    with pytest.raises(UsageError, match="another atlas"):
        prepared(series()[:3], spec(Step.named("robust_fixed"), parcels=3), scaling=again)
    with pytest.raises(UsageError, match="takes no scaling"):
        prepared(series(), spec(Step.named("zscore_run")), scaling=again)
    with pytest.raises(NotFoundError):
        RobustScaling.load(tmp_path / "gone.json")
    for text in ("{}", "[" * 100_000, '{"median": [1], "spread": [1, 2], "runs": 1, "frames": 1}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ScanError, match="is not a scaling"):
            RobustScaling.load(tmp_path / "bad.json")
    for none in ([], [series(), series()[:3]]):
        with pytest.raises(UsageError, match="cannot be fitted"):
            RobustScaling.fit(none)


def test_windows() -> None:
    x = series(47)
    windows, warnings = prepared(x, spec(Step.named("zscore_parcel")))
    whole = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)  # statistics of the whole run
    assert [(w.first_frame, w.frames) for w in windows] == [(0, 20), (20, 20)]
    np.testing.assert_allclose(np.concatenate([w.tensor for w in windows], 1), whole[:, :40], atol=2e-3)
    assert warnings == ["the last 7 frames do not fill a window of 20 and are left out"]
    ((window,), warnings) = prepared(series(13), spec(Step.named("zscore_parcel")))
    assert window.frames == 13 and np.abs(window.tensor[:, 13:]).max() < 1e-3 and "7 were padded" in warnings[0]
    ((window,), warnings) = prepared(series(47), spec(frames=None))
    assert window.tensor.shape == (PARCELS, 47) and warnings == []


def test_repetition_times() -> None:
    rate = RepetitionTime(seconds=0.8, tolerance=0.1, policy="resample")
    x = series(60)
    assert prepared(x, spec(rate=rate), 0.72)[1] == prepared(x, spec(rate=rate), 0.8)[1] == []
    windows, warnings = prepared(x, spec(rate=rate, frames=None), 2.0)
    times = np.arange(windows[0].tensor.shape[1]) * 0.8
    assert len(times) == 148 and times[-1] <= 59 * 2.0 < times[-1] + 0.8
    wanted = [np.interp(times, np.arange(60) * 2.0, row) for row in x]
    np.testing.assert_allclose(windows[0].tensor, wanted, rtol=1e-6)
    assert warnings == ["resampled in time from 2 s to 0.8 s between frames, linearly"]
    with pytest.raises(UsageError, match="not known") as caught:
        prepared(x, spec(rate=rate))
    assert "--tr 0.8" in str(caught.value)
    _, warnings = prepared(x, spec(rate=rate.model_copy(update={"policy": "as_is"})), 2.0)
    assert "trained on 0.8 s" in warnings[0]
    with pytest.raises(ScanError, match="does not have the encoder's repetition time"):
        prepared(x, spec(rate=rate.model_copy(update={"policy": "refuse"})), 2.0)
    assert np.array_equal(resample_in_time(x, 2.0, 2.0), x)
    assert np.array_equal(resample_in_time(x, 1.0, 2.0), x[:, ::2])
    assert resample_in_time(x[:, :1], 1.0, 2.0).shape == (PARCELS, 1)


def test_what_cannot_be_prepared() -> None:
    with pytest.raises(ScanError, match="does not have the encoder's number of parcels") as caught:
        prepared(series()[:4], spec())
    assert "P5" in str(caught.value) and caught.value.exit_code == 65
    with pytest.raises(ScanError, match="too short"):
        prepared(series(9), spec())
    with pytest.raises(ScanError, match="is constant"):
        prepared(np.ones((PARCELS, 20), np.float32), spec(Step.named("zscore_parcel")))
    with pytest.raises(ScanError, match="is constant"):
        prepared(np.ones((PARCELS, 20), np.float32), spec(Step.named("zscore_run")))
    flat = series()
    flat[2] = 7.0
    for name in ("robust_fixed", "robust_as_published", "zscore_parcel"):
        ((window,), warnings) = prepared(flat, spec(Step.named(name)))
        assert not window.tensor[2].any() and window.tensor[3].any() and "1 parcels are constant" in warnings[-1]
    with pytest.raises(ModelError, match="unknown steps"):
        prepared(series(), spec(Step.named("detrend")))
    with pytest.raises(ModelError, match="unknown steps"):
        prepared(series(), spec(Step.named("zscore_run"), Step.named("zscore_parcel")))
    with pytest.raises(ModelError, match="does not take parcel series"):
        prepared(series(), ScanSpec(modality="tokens", axes=(Axis(name="token"), Axis(name="width", size=3))))
