"""Prepared scans for training: elements, crops that read their chunks only, samplers that resume at the very sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.stores.dataset import CounterSampler, ScanDataset
from neuroflamingo_preprocessing.stores.items import item_key
from neuroflamingo_preprocessing.stores.scans import ScanStore

AXES = ("channel", "x", "y", "z")
SHAPE = (1, 20, 24, 18)


def tensor(number: int) -> np.ndarray:
    return np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE) + 1e5 * number


@pytest.fixture
def store(tmp_path: Path) -> ScanStore:
    store = ScanStore.create(tmp_path / "s", encoder="vit3d", card_digest="0" * 64, spec_digest="1" * 64)
    for number in range(4):
        key = item_key(f"{number:064x}", "1" * 64, {})
        store.put(key, [tensor(number), tensor(number + 10)], AXES, {"name": str(number)})
    return store


def test_elements_are_windows(store: ScanStore) -> None:
    data = ScanDataset(store.path)
    assert len(data) == 8
    names = {key: int(store[key].metadata["name"]) for key in store}
    for index in range(8):
        element = data[index]
        wanted = tensor(names[element["key"]] + 10 * element["window"])
        assert element["scan"].dtype == torch.float32 and np.array_equal(element["scan"].numpy(), wanted)
    doubled = ScanDataset(store, transform=lambda x: 2 * x)
    assert torch.equal(doubled[3]["scan"], 2 * data[3]["scan"])


@pytest.mark.slow
def test_crops_are_parts_and_depend_on_seed_epoch_and_index_only(store: ScanStore) -> None:
    whole, data, again = ScanDataset(store), ScanDataset(store, crop=(8, 6, 18)), ScanDataset(store, crop=(8, 6, 18))
    places = set()
    for epoch in range(4):
        data.epoch = again.epoch = epoch
        for index in range(8):
            crop, volume = data[index]["scan"], whole[index]["scan"]
            assert crop.shape == (1, 8, 6, 18) and torch.equal(crop, again[index]["scan"])
            at = np.unravel_index(int((volume == crop[0, 0, 0, 0]).flatten().nonzero()[0]), SHAPE)[1:]
            assert torch.equal(crop, volume[:, at[0] : at[0] + 8, at[1] : at[1] + 6, at[2] : at[2] + 18])
            places.add(tuple(map(int, at)))
    assert len(places) > 20
    for wrong in ((21, 6, 6), (8, 6, 19)):
        with pytest.raises(UsageError, match="too small for this crop"):
            ScanDataset(store, crop=wrong)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_with_workers(store: ScanStore, workers: int) -> None:
    data = ScanDataset(store)
    loader = DataLoader(data, batch_size=3, num_workers=workers, multiprocessing_context="spawn" if workers else None)
    seen = torch.cat([batch["scan"] for batch in loader])
    assert torch.equal(seen, torch.stack([data[index]["scan"] for index in range(8)]))


@pytest.mark.parametrize("stop", [0, 1, 5, 10, 13, 20])
def test_a_sampler_goes_on_at_the_very_sample(stop: int) -> None:
    def draw(sampler: CounterSampler, count: int) -> list[int]:
        drawn: list[int] = []
        while len(drawn) < count:
            for index in sampler:
                drawn.append(index)
                if len(drawn) == count:
                    break
        return drawn

    through = draw(CounterSampler(10, seed=3), 30)
    assert sorted(through[:10]) == sorted(through[10:20]) == list(range(10)) and through[:10] != through[10:20]
    first = CounterSampler(10, seed=3)
    before = draw(first, stop) if stop else []
    second = CounterSampler(10, seed=99)
    second.load_state_dict(first.state_dict())
    assert before + draw(second, 30 - stop) == through


def test_shares_of_processes_do_not_overlap() -> None:
    shares = [list(CounterSampler(11, seed=1, rank=rank, world=3)) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3] and len({index for share in shares for index in share}) == 9
    assert list(CounterSampler(5, shuffle=False)) == [0, 1, 2, 3, 4]
    for wrong in ({"length": 0}, {"length": 5, "rank": 2, "world": 2}, {"length": 1, "world": 2}):
        with pytest.raises(UsageError):
            CounterSampler(**wrong)
    for state in ({"seed": 0}, {"seed": 0, "epoch": 0, "index": 99}):
        with pytest.raises(UsageError):
            CounterSampler(5).load_state_dict(state)
