"""Painted cases: what the truth says must be in the voxels, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from neuroflamingo.findings.regions import region_of
from neuroflamingo.findings.vocabulary import FOCAL, FOCAL_REGIONS, Finding, FindingClass, Region, Side, Signal
from neuroflamingo.painting.anatomy import Volume, load_anatomy
from neuroflamingo.painting.case import paint_case, paint_into_head
from neuroflamingo.painting.cases import MOST_NORMAL_ML, VENTRICLES_ML, draw_blueprint, draw_wishes
from neuroflamingo.painting.lattice import grow, hats
from neuroflamingo.painting.lesions import TERRITORY_EDGE_MM, measure, territories
from neuroflamingo.painting.placing import LARGE_MM
from neuroflamingo.painting.rendering import OnGrid, paint, render_on_model_grid, slow_fields
from neuroflamingo.painting.scanner_space import Sampling, render_native
from neuroflamingo_preprocessing.structural.template import grid_affine, load_template


def wish(kind: FindingClass, side: Side, region: Region, size_mm: float) -> Finding:
    return Finding(kind=kind, side=side, region=region, size_mm=size_mm)


PLAIN = Sampling((2.0, 2.0, 2.0), (0, 1, 2), (False, False, False), np.eye(3), (1, 1, 1))


@pytest.mark.slow
def test_same_seed_gives_the_same_case_and_another_seed_another() -> None:
    first, again, other = (paint_case(seed).on_model_grid() for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_a_third_of_cases_or_more_are_normal_and_all_classes_occur() -> None:
    drawn = [draw_wishes(np.random.default_rng(seed)) for seed in range(3000)]
    assert np.mean([not wishes for wishes in drawn]) >= 0.3
    assert {f.kind for wishes in drawn for f in wishes} == set(FindingClass)
    focal = [sum(f.kind in FOCAL for f in wishes) for wishes in drawn]
    assert set(focal) == {0, 1, 2, 3}
    sizes = [f.size_mm for wishes in drawn for f in wishes if f.size_mm is not None]
    assert 8 <= min(sizes) < 9 and 60 < max(sizes) <= LARGE_MM


def test_crowded_cases_have_several_lesions_and_leave_the_others_as_they_are() -> None:
    crowded = [draw_wishes(np.random.default_rng(seed), crowded=True) for seed in range(60)]
    counts = [sum(f.kind in FOCAL for f in wishes) for wishes in crowded]
    assert min(counts) == 2 and max(counts) == 4
    assert draw_blueprint(4, load_anatomy("icbm2009a")).findings == paint_case(4).findings
    assert draw_blueprint(4, load_anatomy("icbm2009a"), crowded=True).findings != paint_case(4).findings


@pytest.mark.slow
@pytest.mark.parametrize("side", [Side.LEFT, Side.RIGHT])
@pytest.mark.parametrize(
    ("kind", "sign"), [(FindingClass.INFARCT, -1), (FindingClass.MASS, -1), (FindingClass.HEMATOMA, 1)]
)
def test_a_lesion_changes_the_signal_on_its_side(kind: FindingClass, sign: int, side: Side) -> None:
    """The same head with and without the lesion differs where the truth says, in the direction it says."""
    head = load_anatomy()
    with_lesion = draw_blueprint(11, head, [wish(kind, side, Region.FRONTAL, 30.0)])
    lesion, finding = with_lesion.lesions[0], with_lesion.findings[0]
    changed = render_on_model_grid(with_lesion, head)
    where = changed.lesions[FOCAL.index(kind)] > 0.5
    index = np.argwhere(where)
    world = index @ grid_affine()[:3, :3].T + grid_affine()[:3, 3]
    assert (np.sign(world[:, 0]) == (-1 if side is Side.LEFT else 1)).mean() > 0.9
    assert finding.signal == (Signal.LOW if sign < 0 else Signal.HIGH)
    template = load_template()
    white = where & (template.grid_white > 0.6)
    difference = (changed.volume - template.grid_t1)[white].mean()
    assert np.sign(difference) == sign and abs(difference) > 0.02 * lesion.contrast
    assert np.linalg.norm(changed.centres[0] - world.mean(0)) < 8.0


@pytest.mark.slow
def test_truth_is_measured_from_what_is_painted() -> None:
    """Side, region and longest diameter of the painted voxels agree with the finding, over many cases."""
    head = load_anatomy()
    checked = 0
    for seed in range(40):
        blueprint = draw_blueprint(seed, head)
        for lesion, finding in zip(blueprint.lesions, blueprint.lesion_findings, strict=True):
            size, points = measure(lesion, head, blueprint.to_head[:3, :3], samples=40)
            assert abs(size - finding.size_mm) < 1.5 + 0.1 * finding.size_mm
            assert (region_of(points.numpy()) == FOCAL_REGIONS.index(finding.region)).mean() > 0.5
            if finding.side is not Side.MIDLINE:
                assert (np.sign(points[:, 0].numpy()) == (-1 if finding.side is Side.LEFT else 1)).mean() > 0.85
            checked += 1
    assert checked >= 20


def test_lesions_follow_tissue_and_are_no_ellipsoids() -> None:
    head = load_anatomy()
    blueprint = draw_blueprint(3, head, [wish(FindingClass.INFARCT, Side.LEFT, Region.PARIETAL, 35.0)])
    _, points = measure(blueprint.lesions[0], head, np.eye(3), samples=40)
    maps = head.coarse(points)
    assert float((maps[1] + maps[2]).min()) > 0.3, "an infarct lies in tissue, not in fluid"
    centred = points.numpy() - points.numpy().mean(0)
    values, vectors = np.linalg.eigh(np.cov(centred.T))
    radii = np.linalg.norm((centred @ vectors) / np.sqrt(5 * values), axis=1)
    assert (radii > 1.05).mean() > 0.03, "an ellipsoid has no point outside its own ellipsoid of inertia"


def test_a_mass_displaces_tissue_and_an_infarct_does_not() -> None:
    head = load_anatomy()
    for kind, moves in ((FindingClass.MASS, True), (FindingClass.INFARCT, False)):
        lesion = draw_blueprint(5, head, [wish(kind, Side.RIGHT, Region.TEMPORAL, 30.0)]).lesions[0]
        beside = torch.from_numpy(lesion.centre)[None] + torch.tensor([[0.0, 12.0, 0.0]])
        assert (float((lesion.source(beside) - beside).norm()) > 1.0) == moves


@pytest.mark.parametrize("grade", [1, 2, 3])
def test_ventricles_and_white_matter_lesions_grow_with_the_grade(grade: int) -> None:
    head = load_anatomy()

    def painted(kind: FindingClass, region: Region, g: int) -> OnGrid:
        wishes = [Finding(kind=kind, side=Side.BILATERAL, region=region, grade=g)] if g else []
        return render_on_model_grid(draw_blueprint(21, head, wishes), head)

    def fluid(g: int) -> float:
        volume = painted(FindingClass.VENTRICULAR_ENLARGEMENT, Region.VENTRICLES, g).volume
        x, y, z = (np.abs(np.indices(volume.shape)[i] * 3.0 + grid_affine()[i, 3]) for i in range(3))
        return float((volume[(x < 30) & (z < 40) & (y < 60)] < 0.4).mean())

    def lesions(g: int) -> float:
        return float(painted(FindingClass.WHITE_MATTER_LESIONS, Region.WHITE_MATTER, g).lesions[3].sum())

    assert fluid(grade) > fluid(grade - 1) * 1.05
    assert lesions(grade) > lesions(grade - 1) * 1.3


def test_native_scan_keeps_every_voxel_in_its_place() -> None:
    """The same head stored with other axes, flips and tilt shows the same signal at the same world points."""
    head = load_anatomy()
    blueprint = draw_blueprint(31, head, [wish(FindingClass.HEMATOMA, Side.LEFT, Region.OCCIPITAL, 28.0)])
    turned = Sampling((2.0, 2.0, 2.0), (2, 0, 1), (True, False, True), np.eye(3), (1, 1, 1))
    one, affine_one = render_native(blueprint, head, PLAIN)
    two, affine_two = render_native(blueprint, head, turned)
    rng = np.random.default_rng(0)
    index = np.stack([rng.integers(n, size=500) for n in one.shape], axis=1)
    world = index @ affine_one[:3, :3].T + affine_one[:3, 3]
    other = np.round((world - affine_two[:3, 3]) @ np.linalg.inv(affine_two[:3, :3]).T).astype(int)
    assert np.allclose(one[tuple(index.T)], two[tuple(other.T)])
    assert np.linalg.det(affine_one[:3, :3]) > 0 and affine_one.shape == (4, 4)


def test_a_finding_that_has_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="no room for mass"):
        paint_case(1, findings=[wish(FindingClass.MASS, Side.LEFT, Region.THALAMUS, 45.0)])


@pytest.mark.slow
def test_the_head_itself_with_one_finding_and_nothing_else() -> None:
    wanted = Finding(kind=FindingClass.HEMATOMA, side=Side.LEFT, region=Region.FRONTAL, size_mm=34.0)
    case, scan = paint_into_head([wanted])
    (finding,) = case.findings
    assert (finding.side, finding.region) == (Side.LEFT, Region.FRONTAL) and abs(finding.size_mm - 34) < 9
    template = load_template()
    place = np.linalg.inv(template.affine) @ scan.affine
    index = np.moveaxis(np.indices(scan.voxels.shape), 0, -1) @ place[:3, :3].T + place[:3, 3]
    plain = map_coordinates(template.t1 * template.mask, np.moveaxis(index, -1, 0), order=1)
    world = np.moveaxis(np.indices(scan.voxels.shape), 0, -1) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    (lesion,) = case.blueprint.lesions
    far = np.linalg.norm(world - lesion.centre, axis=-1) > 70
    brain = far & (plain > 0.2)
    gain = float((scan.voxels[brain] * plain[brain]).sum() / (plain[brain] ** 2).sum())
    _, unpainted = paint_into_head([])
    assert np.corrcoef(scan.voxels[brain], unpainted.voxels[brain])[0, 1] > 0.99
    assert np.corrcoef(unpainted.voxels[brain], plain[brain])[0, 1] > 0.96
    assert np.median(np.abs(scan.voxels[brain] / gain - plain[brain])) < 0.03
    again, same = paint_into_head([wanted])
    assert np.array_equal(same.voxels, scan.voxels) and again.findings == case.findings


def test_volumes_are_sampled_as_scipy_does() -> None:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((3, 9, 7, 8)).astype(np.float32)
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0.3, -4], [0, 0.1, 3.0, 2], [0, 0, 0, 1]])
    index = rng.uniform(-2, 10, (3, 4000))
    index[:, :2] = [[0, 8], [0, 6], [0, 7]]
    world = (affine[:3, :3] @ index + affine[:3, 3:]).T.astype(np.float32)
    sampled = Volume(data, affine)(torch.from_numpy(world)).numpy()
    expected = [map_coordinates(channel, index, order=1, mode="nearest") for channel in data]
    assert np.abs(sampled - expected).max() < 1e-4
    assert np.array_equal(Volume(data, affine)(torch.from_numpy(world), slice(1, 2))[0], sampled[1])


def test_growing_from_a_lattice_is_linear_interpolation() -> None:
    nodes = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    shape = (10, 9, 7)
    along = [hats(torch.linspace(0, m - 1, n), m) for m, n in zip(nodes.shape[1:], shape, strict=True)]
    expected = torch.nn.functional.interpolate(nodes[None], size=shape, mode="trilinear", align_corners=True)[0]
    assert torch.allclose(grow(nodes, *along), expected, atol=1e-6)


def test_a_scan_on_its_lattice_is_what_is_drawn_voxel_by_voxel() -> None:
    """Slow fields grown from 4 mm nodes, only near the head, against the same fields computed at every voxel."""
    head = load_anatomy()
    blueprint = draw_blueprint(41, head, [wish(FindingClass.MASS, Side.RIGHT, Region.TEMPORAL, 25.0)])
    scanner = replace(blueprint.scanner, noise=0.0, bias=torch.zeros(1, 1, 4, 4, 4), skull=False)
    blueprint = replace(blueprint, scanner=scanner)
    scan, affine = render_native(blueprint, head, PLAIN)
    index = np.indices(scan.shape).reshape(3, -1)
    to_template = np.linalg.inv(blueprint.to_head) @ affine
    points = (to_template[:3, :3] @ index + to_template[:3, 3:]).T.astype(np.float32)
    signal = paint(blueprint, head, slow_fields(blueprint, head, torch.from_numpy(points)), fine=True)[0].numpy()
    flat = scan.reshape(-1)
    level = float((flat * signal).sum() / (signal**2).sum())
    difference = np.abs(flat / level - signal)
    assert (signal > 0).mean() > 0.1 and difference.mean() < 0.002 and (difference > 0.1).mean() < 0.001


@pytest.mark.parametrize("wider_mm", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("grade", [0, 1, 2, 3])
def test_a_grade_is_a_volume_of_the_ventricles_whatever_the_head_began_with(grade: int, wider_mm: float) -> None:
    head = load_anatomy()
    fields = head.fields.data.copy()
    fields[0] -= wider_mm
    other = replace(head, fields=Volume(fields, head.fields.affine))
    assert (other.ventricles_ml(0) > head.ventricles_ml(0)) == (wider_mm > 0)
    region, kind = Region.VENTRICLES, FindingClass.VENTRICULAR_ENLARGEMENT
    wishes = [Finding(kind=kind, side=Side.BILATERAL, region=region, grade=grade)] if grade else []
    for seed in range(3):
        volume = other.ventricles_ml(draw_blueprint(seed, other, wishes).ventricle_push_mm)
        if grade:
            low, high = VENTRICLES_ML[grade]
            assert low - 0.5 < volume < high + 0.5
        else:
            assert volume < MOST_NORMAL_ML + 0.5


@pytest.mark.slow
def test_an_infarct_ends_at_the_border_of_its_artery() -> None:
    """Close beside the territory of the anterior cerebral artery, which the same body without a border enters."""
    head = load_anatomy()
    for seed in range(6):
        drawn = draw_blueprint(seed, head, [wish(FindingClass.INFARCT, Side.LEFT, Region.FRONTAL, 42.0)]).lesions[0]
        body = np.eye(3, dtype=np.float32) / np.float32(20.0)
        lesion = replace(drawn, centre=np.array([-27.0, 15.0, 45.0], np.float32), shape=body, wedge=False, territory=1)
        (_, kept), (_, free) = (measure(one, head, np.eye(3)) for one in (lesion, replace(lesion, territory=None)))
        deepest, without = (float(territories(points)[1].min()) for points in (kept, free))
        assert deepest > -1.3 * TERRITORY_EDGE_MM and deepest > without + 2.0
