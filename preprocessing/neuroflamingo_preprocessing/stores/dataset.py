"""Prepared scans for training: a map-style dataset over a store, and a sampler that resumes exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.stores.items import ItemStore
from neuroflamingo_preprocessing.stores.scans import ScanStore


class ScanDataset(Dataset[dict[str, Any]]):
    """Dataset of all windows of all items of a store; safe for the workers of a `DataLoader`, which open files anew.

    An element is `{"scan": float32 [axes of the card], "key": str, "window": int}`; for a `TokenStore` it has
    `scan_tokens` `[token, width]` and `token_mask` `[token]` instead of `scan`.

    Args:
        store: a scan store, its folder, or a token store.
        transform: applied to each floating-point tensor.
        crop: sizes of a random crop along x, y and z; only the chunks it touches are read. None: no crop.
        seed: seed of the crops, which depend on it, the epoch and the index of the element, and nothing else.
    """

    def __init__(
        self,
        store: ItemStore[Any] | str | Path,
        transform: Callable[[Tensor], Tensor] | None = None,
        crop: tuple[int, int, int] | None = None,
        seed: int = 0,
    ) -> None:
        self.store = store if isinstance(store, ItemStore) else ScanStore(store)
        self.transform, self.crop, self.seed, self.epoch = transform, crop, seed, 0
        self._sizes = {key: self.store.peek(key).sizes() for key in self.store}
        self.elements = [(key, window) for key, (shape, _) in self._sizes.items() for window in range(shape[0])]
        self._axes = self._check_crop(self._sizes[self.elements[0][0]]) if self._sizes and crop else ()

    def _check_crop(self, sizes: tuple[tuple[int, ...], tuple[str, ...]]) -> tuple[int, ...]:
        shape, names = sizes
        missing = [name for name in "xyz" if name not in names]
        axes = () if missing else tuple(names.index(name) for name in "xyz")
        assert self.crop is not None
        if missing or any(size > shape[axis] for size, axis in zip(self.crop, axes, strict=True)):
            raise UsageError(
                "these scans are too small for this crop",
                expected="axes x, y and z, at least as long as the crop",
                seen=f"{dict(zip(names, shape, strict=True))}, crop {self.crop}",
            )
        return axes

    def __len__(self) -> int:
        return len(self.elements)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key, window = self.elements[index]
        item = self.store.peek(key)
        part: list[Any] = [window]
        if self.crop:
            shape, _ = self._sizes[key]
            rng = np.random.default_rng([self.seed, self.epoch, index])
            part += [slice(None)] * (len(shape) - 1)
            for axis, size in zip(self._axes, self.crop, strict=True):
                first = int(rng.integers(shape[axis] - size + 1))
                part[axis] = slice(first, first + size)
        element: dict[str, Any] = {name: torch.from_numpy(value) for name, value in item.element(tuple(part)).items()}
        if self.transform:
            element |= {name: self.transform(value) for name, value in element.items() if value.is_floating_point()}
        return element | {"key": key, "window": window}


class CounterSampler(Sampler[int]):
    """Sampler of shuffled indices whose state is (seed, epoch, index), to resume from a checkpoint at the next sample.

    Args:
        length: length of the dataset.
        seed: seed of the shuffling.
        shuffle: False keeps the order of the dataset.
        rank, world: this process and the number of processes; all get equally many samples, the remainder is dropped.
    """

    def __init__(self, length: int, seed: int = 0, *, shuffle: bool = True, rank: int = 0, world: int = 1) -> None:
        if not (length > 0 and 0 <= rank < world and length >= world):
            raise UsageError(
                "invalid sizes for a sampler",
                expected="at least one sample for each process, rank below world",
                seen=f"length {length}, rank {rank}, world {world}",
            )
        self.length, self.seed, self.shuffle, self.rank, self.world = length, seed, shuffle, rank, world
        self.epoch = self.index = 0

    def __len__(self) -> int:
        return self.length // self.world

    def __iter__(self) -> Iterator[int]:
        """Yield the rest of the epoch, then move on to the next one."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length) if self.shuffle else None
        while self.index < len(self):
            place = self.index * self.world + self.rank
            self.index += 1
            yield int(order[place]) if order is not None else place
        self.epoch, self.index = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Seed, epoch and index of the next sample."""
        return {"seed": self.seed, "epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume from a `state_dict`.

        Raises:
            UsageError: not a state of this sampler.
        """
        if set(state) != {"seed", "epoch", "index"} or not 0 <= state["index"] <= len(self):
            raise UsageError("this is not a state of the sampler", expected="seed, epoch, index", seen=str(dict(state)))
        self.seed, self.epoch, self.index = (int(state[name]) for name in ("seed", "epoch", "index"))
