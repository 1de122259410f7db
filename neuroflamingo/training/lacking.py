"""`Lacking`: what a model that is built by its shapes alone lacks on this machine to be trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from neuroflamingo_preprocessing.errors import NeuroFlamingoError


@dataclass
class Lacking:
    """Faults that a training would stop at, in its order, found without stopping at the first one.

    Attributes:
        faults: errors that the training would raise.
        downloads: what it would download first.
        tokenizer: whether the real tokenizer was read; else one of the same size stands in for it.
    """

    faults: list[NeuroFlamingoError] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)
    tokenizer: bool = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep an error instead of raising it."""
        try:
            yield
        except NeuroFlamingoError as error:
            self.faults.append(error)
