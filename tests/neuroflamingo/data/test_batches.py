"""Training batches: functions of their number alone, from files and stores, packed or not, whoever makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuroflamingo.data.batches import TrainingBatches
from neuroflamingo.data.collate import collate, first_fit
from neuroflamingo.data.sequences import encode_sample
from neuroflamingo.data.validation_set import with_scans_of_others
from neuroflamingo.recipe.schema import KINDS, DataSettings
from neuroflamingo_preprocessing.errors import ConfigError, NeuroFlamingoError, ScanError, UsageError
from tests.neuroflamingo.data.samples import sample, tiny_processor, written
from tests.tiny import TOKENS, WIDTH, tiny_model

PROCESSOR = tiny_processor()
EVEN: dict[str, float] = {kind: 1.0 for kind in KINDS}


def batches(folder: Path, *, batch: int = 4, seed: int = 0, **said: Any) -> TrainingBatches:
    held_out = said.pop("held_out", ())
    data = DataSettings.model_validate({"train": ["train.jsonl"]} | said)
    return TrainingBatches(
        written(folder), data, PROCESSOR, batch=batch, seed=seed, held_out=held_out, root=folder, width=WIDTH
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_what_is_in_a_batch(tmp_path: Path) -> None:
    made = batches(tmp_path, batch=12, loss={"instructions": 0.5})
    batch = made.micro_batch(0)
    rows = {name: row for row, name in enumerate(batch["ids"])}
    assert set(rows) >= {"t", "i", "n"} and len(batch["ids"]) == 12
    shape = batch["input_ids"].shape
    assert all(batch[name].shape == shape for name in ("attention_mask", "labels", "loss_weights", "kinds"))
    padding = batch["attention_mask"] == 0
    for name, fill in (("input_ids", 63), ("labels", -100), ("loss_weights", 0.0), ("kinds", -1)):
        assert bool((batch[name][padding] == fill).all())
    assert batch["scan_tokens"].shape == (12, 2, TOKENS, WIDTH) and "token_mask" not in batch
    assert batch["scan_mask"].sum(-1).equal((batch["input_ids"] == 62).sum(-1))
    assert batch["kinds"][rows["t"], 0] == KINDS.index("text") and batch["loss_weights"][rows["t"], 0] == 1.0
    assert batch["loss_weights"][rows["i"], 0] == 1.0, "weight 2 of the sample, 0.5 of its kind"
    for name, numbers in (("i", [0, 1]), ("n", [0, 1])):
        wanted = np.stack([np.load(tmp_path / f"scan{number}.npy") for number in numbers])
        np.testing.assert_array_equal(batch["scan_tokens"][rows[name]].numpy(), wanted)


def test_ranks_share_the_draws_of_one(tmp_path: Path) -> None:
    one, two = batches(tmp_path, batch=8), batches(tmp_path, batch=4)
    for step in range(3):
        together = [two.micro_batch(step, rank, 2)["ids"] for rank in (0, 1)]
        assert one.micro_batch(step)["ids"] == together[0] + together[1]
    halves = [two.micro_batch(step)["ids"] for step in range(4)]
    assert [one.micro_batch(step)["ids"] for step in range(2)] == [halves[0] + halves[1], halves[2] + halves[3]]
    assert batches(tmp_path, seed=1).micro_batch(0)["ids"] != two.micro_batch(0)["ids"]


def test_a_loader_begins_anywhere(tmp_path: Path) -> None:
    made = batches(tmp_path)
    loader = made.loader(3, rank=1, world=2)
    assert all(same(next(loader), made.micro_batch(step, 1, 2)) for step in (3, 4, 5))


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["spawn", None])
def test_workers_change_nothing(tmp_path: Path, start_method: str | None) -> None:
    made = batches(tmp_path)
    loader = made.loader(2, workers=2 if start_method is None else 1, start_method=start_method)
    assert all(same(next(loader), made.micro_batch(step)) for step in range(2, 7))
    loader.close()


def test_a_scan_that_goes_bad_is_a_typed_error_from_any_worker(tmp_path: Path) -> None:
    made = batches(tmp_path, mix={"pairs": 1, "interleaved": 0, "instructions": 0, "text": 0})
    for number in range(6):
        (tmp_path / f"scan{number}.npy").write_bytes(b"no array")
    for workers in (0, 1):
        loader = made.loader(workers=workers)
        with pytest.raises(ScanError, match=r"scan\d.npy") as caught:
            next(loader)
        assert caught.value.exit_code == 65
        loader.close()


def test_packing_keeps_everything_and_learns_the_same(tmp_path: Path) -> None:
    plain, packed = batches(tmp_path, batch=8), batches(tmp_path, batch=8, pack=True, max_tokens=24)
    flat, dense = plain.micro_batch(0), packed.micro_batch(0)
    assert len(dense["input_ids"]) < 8 and dense["input_ids"].shape[1] <= 24
    assert sorted(dense["ids"]) == sorted(flat["ids"]) and same(dense, packed.micro_batch(0))
    singly = {
        name: (flat["input_ids"][row][:n], flat["labels"][row][:n])
        for row, (name, n) in enumerate(zip(flat["ids"], flat["attention_mask"].sum(-1).tolist(), strict=True))
    }
    names = iter(dense["ids"])
    for row, numbers in enumerate(dense["sequence_ids"]):
        assert bool(((numbers == -1) == (dense["attention_mask"][row] == 0)).all())
        for number in range(int(numbers.max()) + 1):
            ids, labels = singly[next(names)]
            here = numbers == number
            assert dense["input_ids"][row][here].equal(ids)
            assert dense["labels"][row][here][1:].equal(labels[1:])
            assert number == 0 or dense["labels"][row][here][0] == -100, "nothing of its own predicts the first token"
    assert next(names, None) is None
    for row, images in enumerate((dense["input_ids"] == 62).sum(-1)):
        assert int(dense["scan_mask"][row].sum()) == int(images)


def test_first_fit() -> None:
    assert first_fit([5, 4, 3, 2, 6], 8) == [[0, 2], [1, 3], [4]]
    assert first_fit([], 8) == []


def test_a_model_learns_from_it(tmp_path: Path) -> None:
    model, _ = tiny_model()
    batch = batches(tmp_path).micro_batch(0)
    inputs = {name: value for name, value in batch.items() if name not in ("ids", "kinds")}
    loss = model(**inputs, loss_only=True).loss
    loss.backward()
    assert torch.isfinite(loss) and loss > 0


def test_text_alone_has_no_scans(tmp_path: Path) -> None:
    made = batches(tmp_path, mix={"pairs": 0, "interleaved": 0, "instructions": 0, "text": 1})
    batch = made.micro_batch(0)
    assert set(batch["ids"]) == {"t"} and not {"scans", "scan_tokens", "scan_mask"} & set(batch)


def test_too_long_samples(tmp_path: Path) -> None:
    cut = batches(tmp_path, max_tokens=10)
    assert len(cut.samples) == 9 and not cut.dropped and cut.micro_batch(0)["input_ids"].shape[1] <= 10
    dropped = batches(tmp_path, max_tokens=10, too_long="drop")
    assert [one.id for one in dropped.samples] == ["p0", "p1", "p2", "p3", "p4", "p5", "t", "n"][: len(dropped.samples)]
    assert sum(dropped.dropped.values()) == 9 - len(dropped.samples) > 0
    with pytest.raises(ScanError, match="samples t, i") as caught:
        batches(tmp_path, max_tokens=2)
    assert "too_long=drop" in str(caught.value)
    with pytest.raises(ConfigError, match="nothing to draw"):
        _ = batches(tmp_path, max_tokens=2, too_long="drop").mixture


def test_nothing_learnt_is_refused_at_collation_too() -> None:
    good = encode_sample(sample("pairs", "a", text="w1"), PROCESSOR.tokenizer)
    bad = encode_sample(sample("pairs", "a", id="bad", text="w1"), PROCESSOR.tokenizer)
    bad.labels.fill_(-100)
    scans = [[{"scan_tokens": torch.zeros(2, 3)}]] * 2
    with pytest.raises(ScanError, match="nothing is learnt from the sample bad"):
        collate([good, bad], scans, pad_token_id=63, multipliers=EVEN)


def test_a_packed_text_is_not_predicted_from_the_one_before_it() -> None:
    """Not even its first token, which a tokenizer may put there and a pair's labels hold."""
    one = encode_sample(sample("pairs", "a", text="w1 w2"), PROCESSOR.tokenizer)
    begun = replace(one, ids=torch.cat([torch.tensor([7]), one.ids]), labels=torch.cat([torch.tensor([7]), one.labels]))
    scans = [[{"scan_tokens": torch.zeros(2, 3)}]] * 2
    batch = collate([begun, begun], scans, pad_token_id=63, multipliers=EVEN, room=20)
    assert batch["labels"].tolist() == [[7, -100, 1, 2, 61, 60, -100, -100, 1, 2, 61, 60]]
    assert batch["sequence_ids"].tolist() == [[0] * 6 + [1] * 6]


def test_tokens_of_different_lengths_are_masked_and_of_different_widths_refused() -> None:
    two = [encode_sample(sample("pairs", "a", text="w1"), PROCESSOR.tokenizer)] * 2
    mask = torch.tensor([True, False])
    scans = [[{"scan_tokens": torch.ones(3, 4)}], [{"scan_tokens": torch.ones(2, 4), "token_mask": mask}]]
    batch = collate(two, scans, pad_token_id=63, multipliers=EVEN)
    assert batch["token_mask"].tolist() == [[[True, True, True]], [[True, False, False]]]
    assert batch["scan_tokens"][1, 0, 2].tolist() == [0.0] * 4
    scans[1] = [{"scan_tokens": torch.ones(2, 5)}]
    with pytest.raises(UsageError, match="one width"):
        collate(two, scans, pad_token_id=63, multipliers=EVEN)


def held_out(folder: Path) -> list[Any]:
    samples = [one.model_copy(update={"id": f"v{one.id}"}) for one in written(folder)]
    return [one.model_copy(update={"findings": ()}) if one.kind == "pairs" else one for one in samples]


def test_validation_is_fixed_and_shared_evenly(tmp_path: Path) -> None:
    made = batches(tmp_path, held_out=held_out(tmp_path))
    ids = [name for batch in made.validation() for name in batch["ids"]]
    assert ids == ["vp0", "vp1", "vp2", "vp3", "vp4", "vp5", "vt", "vi", "vn"]
    assert [name for batch in made.validation(3) for name in batch["ids"]] == ["vp0", "vp3", "vt"]
    shares = [list(made.validation(None, rank, 2)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [2, 2]
    assert sorted(name for share in shares for batch in share for name in batch["ids"]) == sorted(ids)
    assert shares[1][1]["ids"] == [] and bool((shares[1][1]["labels"] == -100).all()), "for one there is nothing left"
    assert all(same(one, other) for one, other in zip(made.validation(), made.validation(), strict=True))


def test_scans_of_others(tmp_path: Path) -> None:
    made = batches(tmp_path, held_out=held_out(tmp_path))
    pairs = list(made.swapped())
    ids = [name for own, _ in pairs for name in own["ids"]]
    assert ids == ["vp0", "vp1", "vp2", "vp3", "vp4", "vp5"], "for two scans there is nobody else; text has none"
    for own, other in pairs:
        assert own["ids"] == other["ids"] and own["labels"].equal(other["labels"])
        assert not (own["scan_tokens"] == other["scan_tokens"]).flatten(1).all(-1).any()


def test_another_scan_of_the_same_subject_is_not_anothers(tmp_path: Path) -> None:
    samples = [
        sample("pairs", f"{subject}{n}", id=f"{subject}{n}", subject=subject, text="w1")
        for n in "12"
        for subject in "ab"
    ]
    pairs = with_scans_of_others(samples)
    assert [(own.scans[0], other.scans[0]) for own, other in pairs] == [
        ("a1", "b1"),
        ("b1", "a2"),
        ("a2", "b2"),
        ("b2", "a1"),
    ]
    assert with_scans_of_others([one for one in samples if one.subject == "a"]) == []
    nobody = [one.model_copy(update={"subject": None}) for one in samples]
    assert [other.scans[0] for _, other in with_scans_of_others(nobody)] == ["b1", "a2", "b2", "a1"]


def test_prompts_end_where_the_answer_begins(tmp_path: Path) -> None:
    made = batches(tmp_path, batch=2, held_out=held_out(tmp_path))
    prompts = list(made.prompts(4))
    assert [name for batch in prompts for name in batch["ids"]] == ["vp0", "vp1", "vp3", "vp4"]
    assert prompts[0]["input_ids"].tolist() == [[62], [62]] and prompts[0]["references"] == ["w1 w2", "w1 w1 w3"]
    assert prompts[0]["findings"] == [(), ()] and prompts[0]["scan_tokens"].shape == (2, 1, TOKENS, WIDTH)
    assert [len(list(made.prompts(4, rank, 3))) for rank in range(3)] == [1, 1, 1]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no template"):
        batches(tmp_path, template="plane")
    with pytest.raises(UsageError, match="both"):
        batches(tmp_path, scans="a", tokens="b")
    with pytest.raises(NeuroFlamingoError, match="no store"):
        batches(tmp_path, tokens="nowhere")
    with pytest.raises(UsageError, match="has no encoder"):
        batches(tmp_path, scans="nowhere")
    stored = sample("pairs", "store:" + "0" * 64, text="w1")
    with pytest.raises(UsageError, match="items of a store"):
        TrainingBatches([stored], DataSettings(train=("a",)), PROCESSOR, batch=1, width=WIDTH)
    with pytest.raises(UsageError, match="width of its tokens"):
        TrainingBatches(written(tmp_path), DataSettings(train=("a",)), PROCESSOR, batch=1)


def test_packed_rows_have_the_loss_of_single_ones(tmp_path: Path) -> None:
    """Through the model: what a text learns does not depend on what shares its row."""
    model, _ = tiny_model()
    plain, packed = batches(tmp_path, batch=8), batches(tmp_path, batch=8, pack=True, max_tokens=24)
    losses = []
    for made in (plain, packed):
        batch = made.micro_batch(0)
        inputs = {name: value for name, value in batch.items() if name not in ("ids", "kinds")}
        with torch.no_grad():
            losses.append(model(**inputs).loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
