"""The kit passes what is sound, and each of its groups finds an encoder that is broken in just that way."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from neuroflamingo.encoder_check.end_to_end import END_TO_END, check_encoder
from neuroflamingo_encoders.card import Cost, EncoderCard
from neuroflamingo_encoders.conformance import check, preparation
from neuroflamingo_encoders.conformance.check import CHECKS, GROUPS, CheckResult, Failure, failures
from neuroflamingo_encoders.conformance.subject import Subject
from neuroflamingo_encoders.contract import BrainEncoder
from neuroflamingo_encoders.families.brainlm.vitmae import BrainLmVitMaeEncoder
from neuroflamingo_encoders.families.fc_baseline.cards import fc_baseline_card
from neuroflamingo_encoders.families.fc_baseline.network import FcBaselineEncoder
from neuroflamingo_encoders.registry import BUILT_IN, encoder_card
from neuroflamingo_preprocessing.errors import ScanError, UsageError
from neuroflamingo_preprocessing.spec import Step
from tests.encoders.conformance import broken

GOLDEN = Path(__file__).parents[2] / "parity" / "encoders"
EXTRA = "open-clip"  # needs a package that is not installed here


def names(results: Iterable[CheckResult], status: str = "failed") -> set[str]:
    return {result.name for result in results if result.status == status}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {EXTRA}))
def test_built_in_encoders_keep_the_contract(name: str) -> None:
    results = list(check_encoder(name))
    assert not failures(results)
    assert {result.group for result in results} == set(GROUPS) == set(range(1, 12))
    assert len(names(results, "passed")) > 25


def test_what_an_extra_would_install_is_named_and_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    (result,) = check_encoder(EXTRA)
    assert result.status == "not applicable" and "neuroflamingo[clip]" in result.message


@pytest.mark.parametrize("name", ["swift", "neurostorm", "brainmt"])
def test_golden_cases_are_found_and_compared(name: str) -> None:
    subject = Subject.of(name, GOLDEN)
    assert re.match(r"\d cases, largest difference", _check("parity.golden").run(subject) or "")


def _check(name: str) -> check.Check:
    return next(check for check in (*CHECKS, *END_TO_END) if check.name == name)


def test_a_sound_encoder_passes_all_that_applies() -> None:
    results = list(check_encoder(broken.Sound))
    assert not failures(results)
    told = {result.name: result.message for result in results}
    assert "2 x 3 x 4" in told["order.tokens_follow"] and "520 weights" in told["card.builds"]


@pytest.mark.parametrize("encoder", broken.EXPECTED, ids=lambda encoder: encoder.__name__)
def test_a_broken_promise_is_found_and_nothing_else(encoder: type[BrainEncoder]) -> None:
    assert names(check.check_encoder(encoder)) == broken.EXPECTED[encoder]


@pytest.mark.parametrize("encoder", broken.AT_LEAST, ids=lambda encoder: encoder.__name__)
def test_what_breaks_much_is_found_too(encoder: type[BrainEncoder]) -> None:
    assert names(check.check_encoder(encoder)) >= broken.AT_LEAST[encoder]


def test_a_false_number_of_weights_is_found_of_one_size_too() -> None:
    card = broken.card_for(broken.Sound, cost=Cost(parameters=65_664))
    with pytest.raises(Failure, match="520 weights, but the card declares 65,664"):
        _check("shapes.full_size").run(Subject.of(lambda: broken.Sound(card)))


@pytest.mark.parametrize(
    ("scan", "words"),
    [
        ({"steps": (Step.named("skull_strip"),)}, "unknown or misplaced steps: skull_strip"),
        ({"steps": (Step.named("resize", side=8),)}, "asks for resize, and for a grid"),
        (
            {"steps": (Step.named("resize", side=8),), "spacing_mm": None, "origin_mm": None},
            "not the sizes of the encoder's axes",
        ),
        ({"steps": (Step.named("resize", side=8),), "channels": ()}, "cannot be prepared from scan files"),
        ({"modality": "image2d", "steps": (Step.named("resize", side=8),)}, "nothing does the step 'resize'"),
        ({"modality": "tokens", "steps": (Step.named("zscore"),)}, "nothing does the step 'zscore'"),
        ({"modality": "sequence", "steps": (Step.named("bytes"),)}, "cannot be prepared from a file"),
    ],
)
def test_a_card_that_names_a_step_which_nothing_does_is_refused(scan: dict[str, Any], words: str) -> None:
    card = broken.card_for(broken.Sound)
    card = card.model_copy(update={"scan": card.scan.model_copy(update=scan)})
    with pytest.raises(Failure, match=words):
        _check("preparation.steps").run(Subject.of(lambda: broken.Sound(card)))


def test_every_group_has_a_broken_encoder() -> None:
    found = set().union(*broken.EXPECTED.values(), *broken.AT_LEAST.values())
    assert {check.group for check in CHECKS if check.name in found} == set(range(1, 11))


@pytest.mark.slow
def test_tokens_that_tell_nothing_are_found_end_to_end() -> None:
    with pytest.raises(Failure, match=r"chance is 0\.69"):
        _check("end_to_end.learns").run(Subject.of(broken.IgnoresTheScan))


def test_a_turned_preparation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = preparation._stored_ball

    def turned(*arguments: Any) -> Any:
        scan = stored(*arguments)
        return type(scan)(scan.voxels[::-1].copy(), scan.affine)

    monkeypatch.setattr(preparation, "_stored_ball", turned)
    with pytest.raises(Failure, match="mm from its place"):
        _check("preparation.geometry").run(Subject.of(broken.Sound))


def test_a_run_stored_on_the_wrong_side_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    write = preparation._write_run
    monkeypatch.setattr(preparation, "_write_run", lambda path, voxels, affine: write(path, voxels[::-1], affine))
    with pytest.raises(Failure, match="mm from its place"):
        _check("preparation.geometry").run(Subject.of("swift"))


@pytest.mark.parametrize("encoder", ["brainlm-13m", "swift", "medicalnet-resnet10"])
def test_another_constant_is_found(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, check = Subject.of(encoder), _check("preparation.normalisation")
    assert check.run(subject)
    monkeypatch.setattr(preparation, "STORED", (*preparation.STORED[:-1], 9.0))
    with pytest.raises(Failure, match="makes"):
        check.run(subject)


@pytest.mark.parametrize(("encoder", "policy"), [("brainlm-13m", "as_is"), ("swift", "resample"), ("swift", "refuse")])
def test_a_repetition_time_treated_otherwise_is_found(
    encoder: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, check = Subject.of(encoder), _check("preparation.time_and_parcels")
    assert check.run(subject)
    true = preparation.target_seconds

    def otherwise(seconds, scan, *rest):
        rate = scan.repetition_time.model_copy(update={"policy": policy})
        return true(seconds, scan.model_copy(update={"repetition_time": rate}), *rest)

    monkeypatch.setattr(preparation, "target_seconds", otherwise)
    with pytest.raises((Failure, ScanError)):
        check.run(subject)


def test_other_golden_numbers_fail(tmp_path: Path) -> None:
    encoder = Subject.of(broken.Sound).fresh()
    x = torch.randn(1, 1, 1, 8, 12, 16)
    tokens = encoder(x).tokens.detach()
    save_file(dict(encoder.state_dict()), tmp_path / "a.weights.safetensors")
    save_file({"input": x, "tokens": tokens}, tmp_path / "a.io.safetensors")
    (tmp_path / "a.json").write_text(json.dumps({"encoder": "sound"}))
    check = _check("parity.golden")
    assert "1 cases" in (check.run(Subject.of(broken.Sound, tmp_path)) or "")
    save_file({"input": x, "tokens": tokens + 1e-3}, tmp_path / "a.io.safetensors")
    with pytest.raises(Failure, match=r"a: tokens differ by"):
        check.run(Subject.of(broken.Sound, tmp_path))


def test_expected_failures_need_a_reason_and_a_failure() -> None:
    reason = {"order.tokens_follow": "the published code swaps the axes"}
    results = list(check.check_encoder(broken.SwapsAxes, expected_failures=reason))
    assert not failures(results) and names(results, "expected failure") == set(reason)
    failed = [r for r in check.check_encoder(broken.Sound, expected_failures=reason) if not r.fine]
    assert [r.name for r in failed] == list(reason) and "take it off the list" in failed[0].message
    with pytest.raises(UsageError, match="has no reason"):
        list(check.check_encoder(broken.Sound, expected_failures={"order.tokens_follow": " "}))
    with pytest.raises(UsageError, match=r"did you mean order\.tokens_follow"):
        list(check.check_encoder(broken.Sound, expected_failures={"order.token_follow": "why"}))


def test_an_encoder_may_name_its_own_deviations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken.Mirrors, "known_deviations", {"order.tokens_follow": "as published"})
    assert not failures(check.check_encoder(broken.Mirrors))


def test_an_encoder_is_found_by_name_path_class_and_function() -> None:
    sources = (
        "fc-baseline",
        "neuroflamingo_encoders.families.fc_baseline.network:FcBaselineEncoder",
        FcBaselineEncoder,
    )
    described = {Subject.of(source).describe() for source in sources}
    assert len(described) == 1 and "tiny instance" in described.pop()
    assert "parcel=5" in Subject.of(lambda: FcBaselineEncoder(fc_baseline_card(5))).describe()
    for source in ("json:dumps", "no.such.module:Encoder", "no-such-encoder"):
        (result,) = check.check_encoder(source)
        assert result.name == "card.builds" and not result.fine


def test_checking_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert not failures(check_encoder(broken.Sound))
    assert torch.equal(torch.rand(3), expected)


def test_cards_shrink_for_checks() -> None:
    card = encoder_card("swift").shrunk({"x": 12, "time": 2}, width=7, tokens="x * time")
    assert card.scan.describe() == "volume4d (channel=1, x=12, y=96, z=96, time=2)"
    assert card.output.width == 7 and card.output.token_count({"x": 12, "time": 2}) == 24
    assert EncoderCard.model_validate(card.model_dump()) == card
    with pytest.raises(ValueError, match="no axis parcel"):
        encoder_card("swift").shrunk({"parcel": 3})


def test_pictures_keep_their_tokens_in_place_in_half_precision() -> None:
    """Bfloat16 cannot count beyond 256: patches numbered in it would be shuffled among each other."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    card = encoder_card("brainlm-vitmae-111m").shrunk({"parcel": 40, "time": 40}, width=8, tokens=1 + 40 * 40)
    config = sizes | {"image_size": 40, "patch_size": 1}
    encoder = BrainLmVitMaeEncoder(card, config, parcels=40, frames=40).freeze()
    encoder.set_coordinates(torch.arange(120.0).view(40, 3))
    x = torch.randn(1, 1, 40, 40).bfloat16()
    exact = encoder(x.float()).tokens
    near = torch.cosine_similarity(exact, encoder.bfloat16()(x).tokens.float(), dim=-1)
    assert float(near[..., 1:].min()) > 0.99  # the class token is a mean over noise
