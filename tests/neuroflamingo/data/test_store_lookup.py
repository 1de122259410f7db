"""Training data from stores: the right items, found without reading the scans, and no other encoder's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuroflamingo.data import store_lookup
from neuroflamingo.data.batches import TrainingBatches
from neuroflamingo.data.manifest import read_manifest
from neuroflamingo.data.scan_sources import ScanSource, StoreScans, open_scans
from neuroflamingo.encoding.encode_job import encoder_identity
from neuroflamingo.encoding.encoder_choice import EncoderChoice
from neuroflamingo.encoding.token_store import encode_into_store
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.model.processor import NeuroFlamingoProcessor
from neuroflamingo.recipe.schema import Recipe
from neuroflamingo_encoders.build import build_encoder
from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_encoders.tokens.store import TokenStore
from neuroflamingo_preprocessing.errors import ConfigError, ModelError, NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.stores.build import prepare_into_store
from tests.neuroflamingo.data.samples import tiny_processor
from tests.tiny import tiny_language_model, tiny_tokenizer

PARCELS, FRAMES = 8, 12
CHOICE = EncoderChoice("fc-baseline", {"parcels": PARCELS})
CARD = encoder_card("fc-baseline", parcels=PARCELS)


def manifest(folder: Path, name: str, scans: list[str], first: int = 0) -> str:
    rows = [
        {"id": f"{name}{n}", "kind": "pairs", "subject": f"s{n + first}", "scans": [scan], "text": f"w{n + 1} w2 w3"}
        for n, scan in enumerate(scans)
    ]
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five parcel series, a store of them prepared, and one of their tokens."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "scans").mkdir()
    for number in range(5):
        series = np.random.default_rng(number).normal(size=(PARCELS, FRAMES)).astype(np.float32)
        np.save(folder / f"scans/series{number}.npy", series)
    manifest(folder, "train.jsonl", [f"scans/series{number}.npy" for number in range(3)])
    manifest(folder, "held.jsonl", [f"scans/series{number}.npy" for number in (3, 4)], first=3)
    manifest(folder, "all.jsonl", [f"scans/series{number}.npy" for number in range(5)])
    prepare_into_store(folder / "all.jsonl", folder / "prepared", CARD, Preparation())
    encode_into_store(folder / "all.jsonl", folder / "tokens", CHOICE, device="cpu")
    return folder


def recipe(folder: Path, **data: Any) -> Recipe:
    data = {"source": str(folder), "train": ["train.jsonl"], "validation": ["held.jsonl"], **data}
    model = {
        "encoder": {"name": "fc-baseline", "options": {"parcels": PARCELS}},
        "language_model": {"architecture": {"model_type": "llama"}},
    }
    return Recipe.model_validate({"name": "r", "model": model, "data": data, "optim": {"steps": 1, "batch": 4}})


def _keys(source: ScanSource) -> Mapping[str, str]:
    assert isinstance(source, StoreScans)
    return source.keys


@pytest.fixture(scope="module")
def joined() -> tuple[NeuroFlamingo, NeuroFlamingoProcessor]:
    encoder = build_encoder("fc-baseline", parcels=PARCELS).freeze()
    resampler = {"dim": PARCELS, "depth": 1, "num_latents": 2, "heads": 2, "dim_head": 4}
    return NeuroFlamingo.assemble(
        encoder, tiny_language_model(), tiny_tokenizer(), resampler=resampler, heads=2, dim_head=4
    )


def test_three_sources_one_training(made: Path, joined) -> None:
    model, processor = joined
    model = model.eval()
    losses, batches = [], {}
    for source in ({}, {"scans": "prepared"}, {"tokens": "tokens"}):
        opened = TrainingBatches.open(recipe(made, **source), model, processor)
        batch = batches[next(iter(source), "files")] = opened.micro_batch(0)
        inputs = {name: value for name, value in batch.items() if name not in ("ids", "kinds")}
        losses.append(model(**inputs).loss.item())
        assert [one["ids"] for one in opened.validation()] == [["held.jsonl0", "held.jsonl1"]]
    assert batches["files"]["scans"].equal(batches["scans"]["scans"])
    assert batches["tokens"]["scan_tokens"].shape == (4, 1, PARCELS, PARCELS)
    assert losses[0] == losses[1] and losses[2] == pytest.approx(losses[0], rel=1e-6)


def test_files_are_recognised_without_being_read(made: Path, monkeypatch) -> None:
    monkeypatch.setattr(store_lookup, "_by_content", lambda *_: pytest.fail("files were read"))
    names = [str(made / f"scans/series{number}.npy") for number in range(5)]
    stores: list[dict[str, Any]] = [{"scans": made / "prepared"}, {"tokens": made / "tokens"}]
    for store in stores:
        source = open_scans(
            names, card=CARD, weights=encoder_identity(build_encoder("fc-baseline", parcels=PARCELS)), **store
        )
        assert len(set(_keys(source).values())) == 5


def test_files_that_moved_are_known_by_their_bytes_and_keys_by_themselves(made: Path, tmp_path: Path, joined) -> None:
    model, processor = joined
    shutil.copytree(made / "scans", tmp_path / "elsewhere")
    shutil.copytree(made / "tokens", tmp_path / "tokens")
    manifest(tmp_path, "train.jsonl", [f"elsewhere/series{number}.npy" for number in range(3)])
    moved = TrainingBatches.open(recipe(tmp_path, tokens="tokens", validation=[]), model, processor)
    here = TrainingBatches.open(recipe(made, tokens="tokens", validation=[]), model, processor)
    assert moved.micro_batch(0)["scan_tokens"].equal(here.micro_batch(0)["scan_tokens"])
    keys = [_keys(here.source)[str(made / f"scans/series{number}.npy")] for number in range(3)]
    manifest(tmp_path, "train.jsonl", [f"store:{key}" for key in keys])
    shutil.rmtree(tmp_path / "elsewhere")
    keyed = TrainingBatches.open(recipe(tmp_path, tokens="tokens", validation=[]), model, processor)
    assert keyed.micro_batch(0)["scan_tokens"].equal(here.micro_batch(0)["scan_tokens"])


def test_scans_that_are_not_in_the_store(made: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "new.npy", np.ones((PARCELS, FRAMES), np.float32))
    for name in (str(tmp_path / "new.npy"), "store:" + "0" * 64, "store:no-key"):
        with pytest.raises(NotFoundError, match="1 of 1 scans are not in the store prepared") as caught:
            open_scans([name], card=CARD, scans=made / "prepared")
        assert caught.value.exit_code == 66 and str(tmp_path) not in str(caught.value)


def test_a_file_that_was_prepared_in_two_ways(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "prepared", tmp_path / "prepared")
    np.save(tmp_path / "twice.npy", np.load(made / "scans/series0.npy"))
    prepare_into_store(tmp_path / "twice.npy", tmp_path / "prepared", CARD, Preparation(repetition_time=0.7))
    os.utime(tmp_path / "twice.npy", (0, 0))
    with pytest.raises(ModelError, match="2 times, prepared in several ways") as caught:
        open_scans([str(tmp_path / "twice.npy")], card=CARD, scans=tmp_path / "prepared")
    assert caught.value.exit_code == 65 and "store:KEY" in str(caught.value)


def test_a_store_of_another_encoder_is_refused(made: Path, tmp_path: Path) -> None:
    names = [str(made / "scans/series0.npy")]
    right = encoder_identity(build_encoder("fc-baseline", parcels=PARCELS))
    other = encoder_card("fc-baseline", parcels=PARCELS + 1)
    for card, weights, words in ((other, right, f"card {other.digest[:12]}"), (CARD, "f" * 64, "weights ffffffffffff")):
        with pytest.raises(ModelError, match="come from another encoder") as caught:
            open_scans(names, card=card, weights=weights, tokens=made / "tokens")
        assert caught.value.exit_code == 65 and words in str(caught.value)
    with pytest.raises(ModelError, match="not prepared for") as caught:
        open_scans(names, card=other, scans=made / "prepared")
    assert caught.value.exit_code == 65
    with pytest.raises(ModelError, match="width 8"):
        open_scans(names, card=None, width=9, tokens=made / "tokens")
    with pytest.raises(UsageError, match="checked against the weights"):
        open_scans(names, card=CARD, tokens=made / "tokens")
    head = json.loads((made / "tokens/store.json").read_text())
    assert (head["weights"], TokenStore(made / "tokens").card) == (right, CARD)


def test_an_encoder_that_trains_needs_scans(made: Path, joined) -> None:
    _, processor = joined
    encoder = build_encoder("fc-baseline", parcels=PARCELS)
    encoder.scale = torch.nn.Parameter(torch.ones(1))
    model = joined[0]
    held, model.encoder = model.encoder, encoder
    try:
        with pytest.raises(ConfigError, match="the encoder is trained"):
            TrainingBatches.open(recipe(made, tokens="tokens"), model, processor)
    finally:
        model.encoder = held


def test_splits_are_checked_and_filters_counted(made: Path, tmp_path: Path, joined) -> None:
    model, processor = joined
    shutil.copytree(made / "scans", tmp_path / "scans")
    manifest(tmp_path, "train.jsonl", ["scans/series0.npy", "scans/series1.npy"])
    manifest(tmp_path, "held.jsonl", ["scans/series4.npy"], first=1)
    with pytest.raises(ScanError, match="s1") as caught:
        TrainingBatches.open(recipe(tmp_path), model, processor)
    assert caught.value.exit_code == 65
    opened = TrainingBatches.open(recipe(made, min_answer_words=3), model, processor)
    assert len(opened.samples) == 3 and not opened.dropped
    with pytest.raises(ConfigError, match="nothing to draw"):
        _ = TrainingBatches.open(recipe(made, min_answer_words=4), model, processor).mixture


def test_windows_of_a_run_are_picked_by_the_number_of_the_draw(tmp_path: Path) -> None:
    from neuroflamingo_encoders.tokens.format import ScanTokens

    store = TokenStore.create(tmp_path / "tokens", card=CARD, weights="w", origin={})
    windows = [ScanTokens(np.full((3, PARCELS), n, np.float32)) for n in range(4)]
    store.put("a" * 64, windows, {"warnings": []})
    manifest(tmp_path, "train.jsonl", ["store:" + "a" * 64])
    samples = read_manifest([tmp_path / "train.jsonl"])
    processor = NeuroFlamingoProcessor(tiny_processor().tokenizer, CARD)

    def opened() -> TrainingBatches:
        data = recipe(tmp_path, tokens="tokens").data
        return TrainingBatches(samples, data, processor, batch=2, root=tmp_path, weights="w", held_out=samples)

    one = opened()
    seen = [one.micro_batch(step)["scan_tokens"][:, 0, 0, 0].tolist() for step in range(16)]
    assert {value for pair in seen for value in pair} == {0.0, 1.0, 2.0, 3.0}
    assert [opened().micro_batch(step)["scan_tokens"][:, 0, 0, 0].tolist() for step in (7, 3)] == [seen[7], seen[3]]
    assert next(one.validation())["scan_tokens"][0, 0, 0, 0] == 0.0
