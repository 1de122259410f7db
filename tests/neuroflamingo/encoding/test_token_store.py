"""`encode` into a store: from scans and from prepared scans the same items, once each; a model trains on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from neuroflamingo.cli import main
from neuroflamingo.encoding.encoder_choice import EncoderChoice
from neuroflamingo.encoding.token_store import encode_into_store
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo_encoders.build import build_encoder
from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_encoders.tokens.format import ScanTokens
from neuroflamingo_encoders.tokens.store import TokenStore
from neuroflamingo_preprocessing import CounterSampler, ScanDataset
from neuroflamingo_preprocessing.errors import ModelError, ScanError
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.stores.scans import ScanStore
from tests.preprocessing.stores.run_datasets import LABELS, run, save

CHOSEN = ["--encoder", "fc-baseline", "--option", "parcels=30", "-q"]
CHOICE = EncoderChoice("fc-baseline", {"parcels": 30})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of three runs, an atlas, and nothing else."""
    monkeypatch.setenv("NEUROFLAMINGO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        save(tmp_path / f"ds/sub-0{number}/func/sub-0{number}_task-rest_bold.nii.gz", run(number))
    (tmp_path / "ds" / "dataset_description.json").write_text("{}")
    save(tmp_path / "atlas.nii.gz", LABELS)
    return tmp_path


def content(store: str) -> dict[str, bytes]:
    folder = Path(store) / "items"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_from_scans_and_from_prepared_scans(place: Path, capsys) -> None:
    assert main(["encode", "ds", "-o", "direct", "--atlas", "atlas.nii.gz", *CHOSEN]) == 0
    assert main(["prepare", "ds", "-o", "prepared", "--atlas", "atlas.nii.gz", "--nprocs", "1", *CHOSEN]) == 0
    assert main(["encode", "prepared", "-o", "tokens", *CHOSEN]) == 0
    assert capsys.readouterr().out.count("3 encoded, 0 already present, 0 failed") == 2
    assert content("direct") == content("tokens"), "the same addresses, the same bytes"
    assert Path("direct/index.parquet").read_bytes() == Path("tokens/index.parquet").read_bytes()
    assert main(["encode", "prepared", "-o", "direct", *CHOSEN, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["present"] == 3
    save(place / "ds/sub-09/func/sub-09_task-rest_bold.nii.gz", run(9))
    assert main(["encode", "ds", "-o", "direct", "--atlas", "atlas.nii.gz", *CHOSEN]) == 0
    assert "1 encoded, 3 already present" in capsys.readouterr().out
    store = TokenStore("direct")
    assert store.card == encoder_card("fc-baseline", parcels=30) and len(store) == 4
    encoder, prepared = build_encoder("fc-baseline", parcels=30), ScanStore("prepared")
    by_name = {store[key].metadata["name"]: store[key] for key in store}
    for key in prepared:
        wanted = encoder(torch.from_numpy(prepared[key].read(0))[None, None]).tokens[0]
        np.testing.assert_allclose(by_name[prepared[key].metadata["name"]].read(), wanted.numpy(), rtol=1e-6)
    everything = "".join(p.read_text() for p in Path("direct").rglob("*.json*"))
    assert str(place) not in everything and "/func/" not in everything
    assert main(["encode", "prepared", "-o", "part", "--participant-label", "sub-02", *CHOSEN]) == 0
    assert main(["encode", "prepared", "-o", "part", "--num-parts", "2", "--part-id", "1", *CHOSEN]) == 0
    assert "1 encoded, 1 already present" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_refused(place: Path, capsys) -> None:
    assert main(["prepare", "ds", "-o", "prepared", "--atlas", "atlas.nii.gz", "--nprocs", "1", *CHOSEN]) == 0
    common = ["encode", "prepared", "-o", "tokens"]
    assert main([*common, *CHOSEN]) == 0
    for code, words, *arguments in (
        (65, "is a token store for something else", *common, *CHOSEN, "--dtype", "float16"),
        (65, "were not prepared for", *common, "--encoder", "fc-baseline", "-q"),
        (2, "are already prepared", *common, *CHOSEN, "--tr", "2.0"),
        (66, "after the filters", *common, *CHOSEN, "--participant-label", "07"),
        (2, "float32 or float16", *common, *CHOSEN, "--dtype", "int8"),
        (2, "is a single file", "encode", "ds", "-o", "a.zarr", "--nprocs", "2", *CHOSEN),
        (2, "takes one input", "encode", "ds", "prepared", "-o", "tokens", *CHOSEN),
        (2, "--overwrite is for token files", *common, *CHOSEN, "--overwrite"),
        (65, "is not a scan store of this", "prepare", "ds", "-o", "tokens", "--atlas", "atlas.nii.gz", *CHOSEN),
        (65, "is not a token store of this version", "encode", "prepared", "-o", "prepared", *CHOSEN),
    ):
        capsys.readouterr()
        assert main(arguments) == code, words
        assert words in capsys.readouterr().err


def test_damaged_prepared_scans_fail_alone(place: Path) -> None:
    assert main(["prepare", "ds", "-o", "prepared", "--atlas", "atlas.nii.gz", "--nprocs", "1", *CHOSEN]) == 0
    store = ScanStore("prepared")
    first, second, _ = list(store)
    metadata = json.loads((store[first].folder / "about.json").read_text())
    metadata["made_of"]["input_sha256"] = "0" * 64
    (store[first].folder / "about.json").write_text(json.dumps(metadata))
    shard = next(p for p in store[second].folder.rglob("c/**/*") if p.is_file())
    shard.write_bytes(shard.read_bytes()[:-5])
    done = encode_into_store("prepared", "tokens", CHOICE, Preparation(), device="cpu")
    assert (done.done, done.failed) == (1, 2) and {one["exit_code"] for one in done.failures} == {65}
    assert "does not state what it was made from" in str(done.failures) and "is damaged" in str(done.failures)


def test_weights_are_part_of_the_address(tmp_path: Path) -> None:
    cards = encoder_card("fc-baseline", parcels=30)
    TokenStore.create(tmp_path / "s", card=cards, weights="1" * 64, origin={})
    with pytest.raises(ModelError, match="for something else"):
        TokenStore.create(tmp_path / "s", card=cards, weights="2" * 64, origin={})
    head = tmp_path / "s" / "store.json"
    head.write_text(head.read_text().replace('"width": 30', '"width": 31'))
    with pytest.raises(ModelError, match="does not hold the card"):
        _ = TokenStore(tmp_path / "s").card


def test_windows_of_different_lengths_and_a_bomb(tmp_path: Path) -> None:
    store = TokenStore.create(tmp_path / "s", card=encoder_card("precomputed", width=4), weights="1" * 64, origin={})
    rows = np.arange(20, dtype=np.float16).reshape(5, 4)
    mask = np.array([True, True, False])
    store.put("a" * 64, [ScanTokens(rows, positions=rows[:, :3]), ScanTokens(rows[:3], mask)], {"name": "x"})
    data = ScanDataset(store, transform=lambda x: x.float())
    assert data[1]["scan_tokens"].tolist() == [*rows[:3].tolist(), [0] * 4, [0] * 4]
    assert data[0]["token_mask"].all() and data[1]["token_mask"].tolist() == [True, True, False, False, False]
    places = store["a" * 64].read(name="positions")
    assert np.array_equal(places[0], rows[:, :3]) and np.isnan(places[1]).all()
    file = store["a" * 64].folder / "tokens" / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shape": [2, 10**9, 10**5]}))
    with pytest.raises(ScanError, match="is damaged"):
        store["a" * 64].read()


def test_a_model_takes_a_batch_of_them(place: Path) -> None:
    """As the documentation shows it: a shuffled loader that resumes, and one step of training."""
    from tests.tiny import tiny_language_model, tiny_tokenizer

    encode_into_store("ds", "tokens", CHOICE, Preparation.of(CHOICE.card.scan, atlas="atlas.nii.gz"), device="cpu")
    data = ScanDataset(TokenStore("tokens"))
    loader = DataLoader(data, batch_size=2, sampler=CounterSampler(len(data), seed=0))
    batch = next(iter(loader))
    assert batch["scan_tokens"].shape == (2, 30, 30) and batch["token_mask"].shape == (2, 30)
    resampler = {"dim": 30, "depth": 1, "num_latents": 2, "heads": 2, "dim_head": 4}
    model, _ = NeuroFlamingo.assemble(
        None, tiny_language_model(), tiny_tokenizer(), resampler=resampler, heads=2, dim_head=4
    )
    ids = torch.tensor([[model.config.image_token_id, 5, 6]] * 2)
    given = {"scan_tokens": batch["scan_tokens"][:, None].float(), "token_mask": batch["token_mask"][:, None]}
    loss = model(input_ids=ids, labels=ids, **given).loss
    loss.backward()
    assert torch.isfinite(loss)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and any(p.grad is not None and bool(p.grad.any()) for p in trained)
