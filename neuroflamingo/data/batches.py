"""`TrainingBatches`: the micro-batches of a training run by number, without any state to save or restore."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from neuroflamingo.data.collate import collate, stacked
from neuroflamingo.data.labels import IGNORED
from neuroflamingo.data.mixing import Mixture, mix
from neuroflamingo.data.scan_sources import open_scans
from neuroflamingo.data.sequences import Sequence as Tokens
from neuroflamingo.data.sequences import nothing_learnt, read_sample
from neuroflamingo.data.splits import identity_for, read_splits
from neuroflamingo.data.templates import check_template
from neuroflamingo.data.validation_set import evenly, prompt_batch, shares, with_scans_of_others
from neuroflamingo.recipe.schema import KINDS, DataSettings
from neuroflamingo_preprocessing.errors import NeuroFlamingoError

if TYPE_CHECKING:
    from neuroflamingo.data.manifest import Sample
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.model.processor import NeuroFlamingoProcessor
    from neuroflamingo.recipe.schema import Recipe


class TrainingBatches:
    """Micro-batches of a training run, as tensors.

    A batch depends only on the seed, the number of the micro-step, the rank and the world size, not on earlier batches,
    so a run resumes by requesting the next number. The object is pickled to workers as it is.

    Args:
        samples: training samples, from `read_manifest`.
        data: data settings of the recipe.
        processor: processor of the model.
        batch: samples per micro-step on one device.
        held_out: validation samples.
        seed: random seed of the sample order.
        root: folder that `data.source` stands for; stores are relative to it.
        width: width of precomputed tokens, for a model without an encoder.
        weights: `encoder_identity` of the model's encoder; needed for a token store only.

    Raises:
        ConfigError: nothing to draw from, or an unknown template.
        ScanError: samples without any learnt token, all in one message (exit 65).
        NeuroFlamingoError: see `open_scans`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        data: DataSettings,
        processor: NeuroFlamingoProcessor,
        *,
        batch: int,
        held_out: Sequence[Sample] = (),
        seed: int = 0,
        root: str | Path = ".",
        width: int | None = None,
        weights: str | None = None,
    ) -> None:
        self.data, self.batch, self.seed = data, batch, seed
        self.tokenizer = processor.tokenizer
        check_template(data.template, self.tokenizer)
        self.dropped: Counter[str] = Counter()
        self.samples, self.held_out = self._usable(samples), self._usable(held_out)
        self.by_kind: dict[str, list[Sample]] = {
            kind: [sample for sample in self.samples if sample.kind == kind] for kind in KINDS
        }
        self.source = open_scans(
            (name for sample in (*self.samples, *self.held_out) for name in sample.scans),
            card=processor.card,
            width=width,
            weights=weights,
            scans=None if data.scans is None else Path(root) / data.scans,
            tokens=None if data.tokens is None else Path(root) / data.tokens,
        )

    @classmethod
    def open(
        cls,
        recipe: Recipe,
        model: NeuroFlamingo,
        processor: NeuroFlamingoProcessor,
        *,
        world: int = 1,
        allow_download: bool = False,
    ) -> TrainingBatches:
        """Read, filter and check the manifests of a recipe (no subject may be in both splits).

        Args:
            recipe: the recipe.
            model: the model, frozen as it will be trained; a token store must match its encoder.
            processor: processor of the model.
            world: number of devices that share each batch.
            allow_download: allow downloading a dataset from a hub.

        Raises:
            NeuroFlamingoError: see `read_splits`, `identity_for`, and the class.
        """
        root, train, held_out, dropped = read_splits(recipe.data, allow_download=allow_download)
        batches = cls(
            train,
            recipe.data,
            processor,
            batch=recipe.optim.batch // world,
            held_out=held_out,
            seed=recipe.seed,
            root=root,
            width=model.config.resampler["dim"] if processor.card is None else None,
            weights=identity_for(recipe, model) if processor.card is not None else None,
        )
        batches.dropped.update(dropped)
        return batches

    @cached_property
    def mixture(self) -> Mixture:
        """Order of all samples.

        Raises:
            ConfigError: there is nothing to draw from.
        """
        counts = {kind: len(samples) for kind, samples in self.by_kind.items()}
        return mix(counts, self.data.mix.model_dump(), self.seed)

    def micro_batch(self, micro_step: int, rank: int = 0, world: int = 1) -> dict[str, Any]:
        """Batch of a micro-step on one device; see `collate` for its contents.

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
    ) -> Generator[dict[str, Any], None, None]:
        """Endless data loader of micro-batches, prefetched by worker processes if there are any.

        Args:
            first_micro_step: number of the first micro-batch.
            rank, world: see `micro_batch`.
            workers: number of worker processes, which does not affect the batches.
            start_method: `spawn`, `fork` or `forkserver`; None: the platform's default.

        Raises:
            NeuroFlamingoError: as `micro_batch`, in whichever process it occurs.
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
        """Tokenise a sample by the recipe's settings; see `read_sample`."""
        data = self.data
        return read_sample(
            sample, self.tokenizer, template=data.template, max_tokens=data.max_tokens, max_scans=data.max_scans
        )

    def validation(self, samples: int | None = None, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Validation samples in order, as micro-batches; every device gets the same number.

        A device that runs out of samples gets its first batch again, without labels and `ids`.

        Args:
            samples: maximum number of samples, spread evenly over all; None: all.
            rank, world: see `micro_batch`.
        """
        chosen = evenly(self.held_out, samples)
        for part in shares(chosen, self.batch, rank, world):
            yield self._collated(part) if part else _silent(self._collated(chosen[: self.batch]))

    def swapped(
        self, samples: int | None = None, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Pairs of micro-batches for the image-reliance metric: with the right scans, and with another subject's.

        Restricted to samples with scans for which another subject has as many; otherwise as `validation`.
        """
        chosen = with_scans_of_others(evenly(self.held_out, samples))
        for part in shares(chosen, self.batch, rank, world):
            if part:
                yield self._collated([own for own, _ in part]), self._collated([other for _, other in part])
            else:
                nothing = _silent(self._collated([own for own, _ in chosen[: self.batch]]))
                yield nothing, nothing

    def prompts(self, samples: int | None = None, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Prompts of validation samples with known findings, for `generate`; see `prompt_batch`.

        Every device gets the same number of batches; one that runs out gets its first batch again, without `ids`.
        """
        chosen = evenly([sample for sample in self.held_out if sample.findings is not None and sample.scans], samples)
        for part in shares(chosen, self.batch, rank, world):
            shown = part or chosen[: self.batch]
            scans = self._scans([sample.scans for sample in shown], [[0] * len(sample.scans) for sample in shown])
            batch = prompt_batch(shown, self.data.template, self.tokenizer) | stacked(scans)
            yield batch if part else batch | {"ids": [], "references": [], "findings": []}

    def _usable(self, samples: Sequence[Sample]) -> list[Sample]:
        """Select the samples that can be learnt from; the others are counted by reason."""
        kept: list[Sample] = []
        empty: list[Tokens] = []
        for sample in samples:
            sequence = self.sequence(sample)
            if sequence.cut and self.data.too_long == "drop":
                self.dropped["longer than data.max_tokens or data.max_scans"] += 1
            elif sequence.learnt:
                kept.append(sample)
            else:
                empty.append(sequence)
        if empty:
            raise nothing_learnt([one.id for one in empty], cut=any(one.cut for one in empty))
        return kept

    def _collated(self, samples: Sequence[Sample], picks: Sequence[Iterable[int]] | None = None) -> dict[str, Any]:
        """Collate a batch of samples; of runs with several windows the picked ones are used, by default the first."""
        sequences = [self.sequence(sample) for sample in samples]
        picks = picks if picks is not None else [[0] * len(one.scans) for one in sequences]
        return collate(
            sequences,
            self._scans([one.scans for one in sequences], picks),
            pad_token_id=self.tokenizer.pad_token_id,
            multipliers=self.data.loss.model_dump(),
            room=self.data.max_tokens if self.data.pack else None,
        )

    def _scans(self, names: Sequence[Sequence[str]], picks: Sequence[Iterable[int]]) -> list[list[Mapping[str, Any]]]:
        return [
            [self.source.read(name, int(pick)) for name, pick in zip(row, some, strict=False)]
            for row, some in zip(names, picks, strict=True)
        ]


def _silent(batch: dict[str, Any]) -> dict[str, Any]:
    return batch | {"labels": torch.full_like(batch["labels"], IGNORED), "ids": []}


class _From:
    """Integers counting up from a first one, restarting with each iterator."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return count(self.first)


class _MicroSteps(Dataset[Any]):
    """Micro-batches by number. An expected error is returned as a value, since a worker would turn it into text."""

    def __init__(self, batches: TrainingBatches, rank: int, world: int) -> None:
        self.batches, self.rank, self.world = batches, rank, world

    def __getitem__(self, micro_step: int) -> Any:
        try:
            return self.batches.micro_batch(micro_step, self.rank, self.world)
        except NeuroFlamingoError as error:
            return error
