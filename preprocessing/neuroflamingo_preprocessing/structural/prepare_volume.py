"""`prepare_volume`: prepare a volume for an encoder, with a log of every change of geometry."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.bids.entities import SUFFIXES
from neuroflamingo_preprocessing.errors import ModelError, ScanError
from neuroflamingo_preprocessing.formats.described import AGENT, MASK, described_by_name
from neuroflamingo_preprocessing.geometry import Affine, GeometryStep, as_rows, orientation_codes, to_canonical
from neuroflamingo_preprocessing.structural.alignment import align
from neuroflamingo_preprocessing.structural.artefacts import Artefacts, judge_artefacts, measure_artefacts
from neuroflamingo_preprocessing.structural.contrast import find_contrast
from neuroflamingo_preprocessing.structural.grid import BY_FIELD, IN_SPACE, Grid, check_grid, grid_of
from neuroflamingo_preprocessing.structural.intensity import filled, match_to_template, within
from neuroflamingo_preprocessing.structural.resampling import covered_voxels, resample
from neuroflamingo_preprocessing.structural.template import GRID_SHAPE, load_template
from neuroflamingo_preprocessing.structural.volume_quality import (
    Quality,
    judge_alignment,
    judge_contrast,
    judge_coverage,
    judge_crop,
    judge_noise,
    judge_overlap,
    name_of,
    on_template_grid,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.scan import NativeSpace, Scan
    from neuroflamingo_preprocessing.spec import ScanSpec
    from neuroflamingo_preprocessing.structural.brain_extraction import Brain

GEOMETRIC_STEPS = (*IN_SPACE, *BY_FIELD)
INTENSITY_STEPS = ("fill_outside_brain", "match_to_template", "template_mask")
THICK_MM = 6.0


@dataclass(frozen=True)
class Prepared:
    """Volume prepared for an encoder.

    Attributes:
        tensor: float32, channels, then x, y and z in the card's order; ready for `torch.from_numpy`.
        affine: index along the last three axes of the tensor to template world, RAS mm.
        geometry: every change of geometry, in order.
        scan_to_template: scan world mm to template world mm, `[4, 4]`; its inverse takes findings back to the scan.
        quality: see `Quality`.
        warnings: from reading, then from preparing.
        timings: seconds by stage.
        brain: the scan's brain mask on the encoder's grid, `[x, y, z]`; None without alignment.
        forced: what the user insisted on, for the top of a report.
        native: voxel grid of the scan; `to_native` resamples maps on the encoder's grid to it.
        template: space that the grid lies in; None: the scan's own.
    """

    tensor: Float32[np.ndarray, "channel first second third"]
    affine: Affine
    geometry: list[GeometryStep]
    scan_to_template: Affine
    quality: Quality
    warnings: tuple[str, ...]
    timings: dict[str, float]
    native: NativeSpace
    brain: Bool[np.ndarray, "x y z"] | None = None
    forced: tuple[str, ...] = ()
    template: str | None = None


def prepare_volume(scan: Scan, spec: ScanSpec, *further: Scan, force: bool = False) -> Prepared:
    """Bring a scan to the grid, the template space and the intensities that an encoder declares.

    Canonical orientation (no interpolation), affine alignment, one anti-aliasing Gaussian and one linear interpolation
    straight onto the encoder's grid (or a grid made of the scan's field of view, see `grid_of`), then the declared
    intensity steps.

    Args:
        scan: as `read_scan` gives it.
        spec: `card.scan` of the encoder.
        further: scans of its further channels, in order, registered to the first one: they go where that goes.
        force: prepare an image that is not of the kind that the encoder takes.

    Raises:
        ScanError: the scan cannot be aligned, is of another kind, shows too little of the brain, or a further channel
            lies elsewhere (exit 65).
        ModelError: the card asks for an unknown step or grid (exit 65).
    """
    check_spec(spec)
    clock = _Clock()
    warnings = [*scan.provenance.warnings, *_modality_warnings(scan, spec)]
    voxels, affine = to_canonical(scan.voxels, scan.affine)
    log = [*scan.geometry, *_log_reorientation(scan, voxels, affine)]
    scan_to_template, quality, forced, brain = np.eye(4), Quality(None, 0.0), None, None
    signal = voxels
    if spec.step("affine_alignment"):
        alignment = align(voxels, affine)
        scan_to_template = alignment.scan_to_template
        contrast = find_contrast(scan, scan_to_template)
        judge_alignment(alignment, contrast, scan, warnings)
        forced = judge_contrast(contrast, spec, scan, warnings, force=force)
        found = alignment.brain
        quality = Quality(
            alignment.correlation, 0.0, overlap=alignment.overlap, brain_ml=found.volume_ml, contrast=contrast
        )
        signal = within(voxels, *found.limits)
        log += [_log_brain(voxels.shape, affine, found), _log_alignment(voxels.shape, affine, scan_to_template)]
        brain = found.on_grid(scan_to_template, spec.grid_shape, spec.grid_affine)
    clock.lap("alignment")
    target = _Target(spec, grid_of(spec, voxels, in_template := scan_to_template @ affine))
    volumes = [target.resample(signal, in_template)]
    log.append(target.log(voxels.shape, in_template))
    covered = target.covered(voxels.shape, in_template)
    cropped = spec.step("crop") is not None
    coverage = judge_crop(volumes[0], voxels, warnings) if cropped else judge_coverage(covered, spec, scan, warnings)
    snr = judge_noise(scan, scan_to_template, spec, warnings)
    artefacts = measure_artefacts(voxels, affine) if spec.template else Artefacts()
    judge_artefacts(artefacts, warnings)
    volumes += [target.further(one, scan, scan_to_template, covered, log, warnings) for one in further]
    clock.lap("resampling")
    changed = np.stack([_change_intensities(one, covered, brain, spec, scan) for one in volumes])
    clock.lap("intensity")
    tensor, affine = _in_card_order(changed, target.grid, spec)
    return Prepared(
        tensor=tensor,
        affine=affine,
        geometry=log,
        scan_to_template=scan_to_template,
        quality=replace(quality, coverage=coverage, snr=snr, **asdict(artefacts)),
        warnings=tuple(warnings),
        timings=clock.seconds,
        native=scan.native,
        brain=brain,
        forced=(forced,) if forced else (),
        template=spec.template,
    )


@dataclass(frozen=True)
class _Target:
    """The grid that all channels go to, and how."""

    spec: ScanSpec
    grid: Grid

    @property
    def fwhm(self) -> float:
        antialias = self.spec.step("gaussian_antialias")
        return float(antialias["fwhm_mm"]) if antialias else 0.0

    def resample(self, voxels: NDArray[Any], affine: Affine) -> NDArray[np.float32]:
        grid, outside = self.grid, self.grid.nearest_outside
        return resample(voxels, affine, grid.shape, grid.affine, self.fwhm, self.spec.fill, nearest_outside=outside)

    def further(
        self,
        scan: Scan,
        first: Scan,
        scan_to_template: Affine,
        covered: NDArray[np.bool_],
        log: list[GeometryStep],
        warnings: list[str],
    ) -> NDArray[np.float32]:
        """A further channel by its own place in the world of the first one."""
        voxels, affine = to_canonical(scan.voxels, scan.affine)
        there = scan_to_template @ affine
        log += [*scan.geometry, *_log_reorientation(scan, voxels, affine), self.log(voxels.shape, there)]
        judge_overlap(covered, self.covered(voxels.shape, there), first, scan, warnings)
        return self.resample(voxels, there)

    def covered(self, shape: tuple[int, ...], affine: Affine) -> NDArray[np.bool_]:
        return covered_voxels(shape, affine, self.grid.shape, self.grid.affine)

    def log(self, shape: tuple[int, ...], affine: Affine) -> GeometryStep:
        step = next((name for name in BY_FIELD if self.spec.step(name)), "resampling")
        linear = "linear" + (f", after a Gaussian to {self.fwhm:g} mm FWHM in all" if self.fwhm else "")
        return GeometryStep(
            name=step,
            before=as_rows(affine),
            after=as_rows(self.grid.affine),
            interpolation="none" if step == "crop" else linear,
            reason=self.grid.reason,
            shape_before=shape,
            shape_after=self.grid.shape,
        )


def _in_card_order(
    volumes: NDArray[np.float32], grid: Grid, spec: ScanSpec
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Volumes `[channel, x, y, z]` with their axes as the card has them, and the affine of that order."""
    order = ["xyz".index(axis.name) for axis in spec.axes[1:]]
    tensor = np.ascontiguousarray(volumes.transpose(0, *(1 + axis for axis in order)))
    return tensor, grid.affine[:, [*order, 3]]


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def check_spec(spec: ScanSpec) -> None:
    """Check that `prepare_volume` can do what a spec asks for.

    Raises:
        ModelError: no 3D volume with named channels, unknown steps, not the grid that the steps need (exit 65).
    """
    first, *sides = [axis.name for axis in spec.axes]
    if spec.modality != "volume3d" or not spec.channels or (first, *sorted(sides)) != ("channel", "x", "y", "z"):
        raise ModelError(
            "this encoder's input cannot be prepared from scan files",
            expected="a 3D volume: a channel axis, whose channels are named, then x, y and z in any order",
            seen=spec.describe(),
            hint="give prepared tensors (or tokens) instead",
            exit_code=65,
        )
    names = [step.name for step in spec.steps]
    unknown = sorted(set(names) - {*GEOMETRIC_STEPS, *INTENSITY_STEPS})
    check_grid(spec)
    order = [name for name in names if name in GEOMETRIC_STEPS]
    wrong = order != [name for name in GEOMETRIC_STEPS if name in order] or names[: len(order)] != order
    wrong |= "fill_outside_brain" in names and "affine_alignment" not in names
    if unknown or wrong:
        raise ModelError(
            "this encoder asks for unknown or misplaced steps" + (": " + ", ".join(unknown) if unknown else ""),
            expected=f"{', '.join(IN_SPACE)}, in this order, or one of {', '.join(BY_FIELD)}; then any of "
            f"{', '.join(INTENSITY_STEPS)} (the first only after affine_alignment, which finds the brain)",
            seen=", ".join(names),
            hint="correct the steps in the encoder's card",
            exit_code=65,
        )
    if any(name in INTENSITY_STEPS for name in names) and (len(spec.channels) > 1 or not on_template_grid(spec)):
        raise ModelError(
            "this encoder asks for template steps, but not on the grid of the template",
            expected=f"one channel, {GRID_SHAPE} voxels, spacing and origin of "
            "neuroflamingo_preprocessing.structural.template",
            seen=f"{spec.grid_shape}, spacing {spec.spacing_mm}, origin {spec.origin_mm}",
            hint=f"leave out {', '.join(INTENSITY_STEPS)}, or use the template's grid",
            exit_code=65,
        )


def _modality_warnings(scan: Scan, spec: ScanSpec) -> list[str]:
    warnings = []
    of_dicom = scan.provenance.header.get("format", "").startswith("DICOM")  # warned when the series was chosen
    if not of_dicom:
        named = described_by_name(scan.provenance.file or "")
        named = named or ((scan.modality,) if scan.modality != "unknown" else ())
        texts = scan.provenance.header.get("described as", "").split(", ")
        for source, kinds in (("file's name", named), ("header's text", texts)):
            others = [kind for kind in kinds if kind and not takes_kind(spec.channels[0], kind)]
            if others:
                words = ", ".join(others)
                warnings.append(f"the {source} says {words}, but this encoder takes {spec.channels[0]}")
    if max(scan.spacing) > THICK_MM:
        warnings.append(f"slices are {max(scan.spacing):.1f} mm apart: small findings may be missed")
    return warnings


def takes_kind(channel: str, kind: str) -> bool:
    """True if a kind of image is what a channel names, in words ("T1w, T2w or T1 with contrast"), or may be ("MR")."""
    named = {word for word in (*SUFFIXES.values(), "contrast") if word in channel}
    return kind in channel or (kind == AGENT and "contrast" in named) or (not named and kind != MASK)


def _change_intensities(
    grid: NDArray[np.float32], covered: NDArray[np.bool_], brain: NDArray[np.bool_] | None, spec: ScanSpec, scan: Scan
) -> NDArray[np.float32]:
    """Apply the declared intensity steps in order."""
    for step in spec.steps:
        if step.name == "fill_outside_brain":
            assert brain is not None  # `check_spec`: found by the alignment
            grid = filled(grid, covered & brain)
        elif step.name == "match_to_template":
            try:
                grid = match_to_template(filled(grid, covered))
            except (ValueError, np.linalg.LinAlgError) as error:
                raise ScanError(
                    f"{name_of(scan)}: intensities cannot be matched to the template",
                    expected="a T1-weighted brain",
                    seen=str(error),
                    hint="look at the scan: it may be empty where the brain should be",
                ) from error
        elif step.name == "template_mask":
            grid = np.where(load_template().grid_mask, grid, np.float32(spec.fill))
    return np.ascontiguousarray(grid, dtype=np.float32)


def _log_reorientation(scan: Scan, voxels: NDArray[Any], affine: Affine) -> list[GeometryStep]:
    before = orientation_codes(scan.affine)
    if before == "RAS":
        return []
    return [
        GeometryStep(
            name="reorientation",
            before=as_rows(scan.affine),
            after=as_rows(affine),
            interpolation="none",
            reason=f"voxel axes permuted and flipped from {before} to RAS; each voxel keeps its place in the world",
            shape_before=scan.voxels.shape,
            shape_after=voxels.shape,
        )
    ]


def _log_brain(shape: tuple[int, ...], affine: Affine, brain: Brain) -> GeometryStep:
    how = "the scan came without skull" if brain.given else "found by deepbet"
    return GeometryStep(
        name="brain extraction",
        before=as_rows(affine),
        after=as_rows(affine),
        interpolation="none",
        reason=f"brain of {brain.volume_ml:.0f} ml, {how}; no voxel is removed",
        shape_before=shape,
        shape_after=shape,
    )


def _log_alignment(shape: tuple[int, ...], affine: Affine, scan_to_template: Affine) -> GeometryStep:
    return GeometryStep(
        name="affine alignment",
        before=as_rows(affine),
        after=as_rows(scan_to_template @ affine),
        interpolation="none",
        reason="12-parameter affine of the brain to the ICBM152 2009a symmetric template; only the affine changes here",
        shape_before=shape,
        shape_after=shape,
    )
