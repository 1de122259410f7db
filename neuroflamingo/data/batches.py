"""`TrainingBatches`: every micro-batch of a training, by its number. There is no state to save or to restore."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from neuroflamingo.data.collating import collate
from neuroflamingo.data.mixing import Mixture, mix
from neuroflamingo.data.scan_sources import open_scans
from neuroflamingo.data.sequences import Sequence as Tokens
from neuroflamingo.data.sequences import nothing_learnt, read_sample
from neuroflamingo.data.templates import check_template
from neuroflamingo.training.recipe import KINDS, DataSettings, Kind
from neuroflamingo_preprocessing.errors import NeuroFlamingoError

if TYPE_CHECKING:
    from neuroflamingo.data.manifest import Sample
    from neuroflamingo.processing import NeuroFlamingoProcessor


class TrainingBatches:
    """Micro-batches of a training: which samples, how mixed, as tensors.

    A batch depends on the seed, the number of the micro-step, the rank and the world's size only, not on what was
    asked for before, so resuming is asking for the next number. It is sent to workers as it is.

    Args:
        samples: as `read_manifest` gives them.
        data: of the recipe.
        processor: the model's.
        batch: samples of a micro-step on one device.
        seed: of the order.
        root: the folder that `data.source` stands for; stores lie in it.
        width: of ready tokens, for a model without an encoder.
        weights: `encoder_identity` of the model's encoder; needed for a token store only.

    Raises:
        ConfigError: nothing to draw from, no such template.
        ScanError: samples of which nothing would be learnt, all in one message (exit 65).
        NeuroFlamingoError: see `open_scans`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        data: DataSettings,
        processor: NeuroFlamingoProcessor,
        *,
        batch: int,
        seed: int = 0,
        root: str | Path = ".",
        width: int | None = None,
        weights: str | None = None,
    ) -> None:
        self.data, self.batch, self.seed = data, batch, seed
        self.tokenizer = processor.tokenizer
        check_template(data.template, self.tokenizer)
        self.samples, self.dropped = self._usable(samples)
        self.by_kind: dict[Kind, list[Sample]] = {
            kind: [sample for sample in self.samples if sample.kind == kind] for kind in KINDS
        }
        self.source = open_scans(
            (name for sample in self.samples for name in sample.scans),
            card=processor.card,
            width=width,
            weights=weights,
            scans=None if data.scans is None else Path(root) / data.scans,
            tokens=None if data.tokens is None else Path(root) / data.tokens,
        )

    @cached_property
    def mixture(self) -> Mixture:
        """The order of all samples.

        Raises:
            ConfigError: there is nothing to draw from.
        """
        counts = {kind: len(samples) for kind, samples in self.by_kind.items()}
        return mix(counts, self.data.mix.model_dump(), self.seed)

    def micro_batch(self, micro_step: int, rank: int = 0, world: int = 1) -> dict[str, Any]:
        """The batch of a micro-step on one of the devices; see `collate` for what is in it.

        Micro-step m of all devices together takes the draws from m * batch * world on, in order of their ranks.

        Raises:
            NeuroFlamingoError: a scan that cannot be read.
        """
        first = (micro_step * world + rank) * self.batch
        draws = range(first, first + self.batch)
        chosen = [self.by_kind[kind][index] for kind, index in map(self.mixture.draw, draws)]
        picks = [np.random.default_rng([self.seed, len(KINDS), draw]) for draw in draws]
        return self._collated(
            chosen, [rng.integers(2**31, size=len(one.scans)) for rng, one in zip(picks, chosen, strict=True)]
        )

    def loader(
        self,
        first_micro_step: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        *,
        start_method: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Micro-batches from this one on, without end, made ahead in other processes if there are workers.

        Args:
            first_micro_step: number of the first one.
            rank, world: see `micro_batch`.
            workers: processes; the batches are the same whatever their number.
            start_method: `spawn`, `fork` or `forkserver`; None: the platform's.

        Raises:
            NeuroFlamingoError: as `micro_batch`, whichever process it happens in.
        """
        loader = DataLoader(
            _MicroSteps(self, rank, world),
            batch_size=None,
            sampler=_From(first_micro_step),
            num_workers=workers,
            multiprocessing_context=start_method if workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        for batch in loader:
            if isinstance(batch, NeuroFlamingoError):
                raise batch
            yield batch

    def sequence(self, sample: Sample) -> Tokens:
        """A sample as token ids and labels, by the recipe's settings; see `read_sample`."""
        data = self.data
        return read_sample(
            sample, self.tokenizer, template=data.template, max_tokens=data.max_tokens, max_scans=data.max_scans
        )

    def _usable(self, samples: Sequence[Sample]) -> tuple[list[Sample], Counter[str]]:
        """The samples that are drawn from, in order, and how many were left out, by reason."""
        kept: list[Sample] = []
        dropped: Counter[str] = Counter()
        empty: list[Tokens] = []
        for sample in samples:
            sequence = self.sequence(sample)
            if sequence.cut and self.data.too_long == "drop":
                dropped["longer than data.max_tokens or data.max_scans"] += 1
            elif sequence.learnt:
                kept.append(sample)
            else:
                empty.append(sequence)
        if empty:
            raise nothing_learnt([one.id for one in empty], cut=any(one.cut for one in empty))
        return kept, dropped

    def _collated(self, samples: Sequence[Sample], picks: Sequence[Sequence[int]]) -> dict[str, Any]:
        sequences = [self.sequence(sample) for sample in samples]
        scans = [
            [self.source.read(name, int(pick)) for name, pick in zip(one.scans, some, strict=False)]
            for one, some in zip(sequences, picks, strict=True)
        ]
        return collate(
            sequences,
            scans,
            pad_token_id=self.tokenizer.pad_token_id,
            multipliers=self.data.loss.model_dump(),
            room=self.data.max_tokens if self.data.pack else None,
        )


class _From:
    """Whole numbers from one on, again for each iterator."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return count(self.first)


class _MicroSteps(Dataset[Any]):
    """Micro-batches by number. An expected failure is handed over as a value: a worker would turn it into words."""

    def __init__(self, batches: TrainingBatches, rank: int, world: int) -> None:
        self.batches, self.rank, self.world = batches, rank, world

    def __getitem__(self, micro_step: int) -> Any:
        try:
            return self.batches.micro_batch(micro_step, self.rank, self.world)
        except NeuroFlamingoError as error:
            return error
