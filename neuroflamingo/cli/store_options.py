"""Options shared by the commands that write stores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuroflamingo.cli.options import split_labels
from neuroflamingo.progress import Progress
from neuroflamingo_preprocessing.errors import UsageError


@dataclass(frozen=True)
class StoreRequest:
    """Store options of `prepare` and `encode`."""

    processes: int | None = None
    scheduler: str | None = None
    filters: Mapping[str, Sequence[str] | None] = field(default_factory=dict)
    filter_file: str | None = None
    parts: tuple[int | None, int | None] = (None, None)
    verify: bool = False
    dry_run: bool = False
    as_json: bool = False
    quiet: bool = False

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """BIDS labels by entity, comma-separated lists split."""
        return split_labels(self.filters)

    @property
    def part(self) -> tuple[int, int] | None:
        """Number and count of a job array's parts.

        Raises:
            UsageError: one is given without the other.
        """
        number, count = self.parts
        if number is None and count is None:
            return None
        if number is None or count is None:
            raise UsageError("--num-parts and --part-id must be given together", expected="both or neither")
        return number, count

    @property
    def workers(self) -> int:
        """Scans processed in parallel.

        Raises:
            UsageError: a number of workers for a scheduler that manages its own.
        """
        if self.scheduler not in (None, "local") and self.processes:
            raise UsageError(
                "--nprocs sets the workers of this machine",
                expected="either --scheduler or --nprocs",
                hint="leave --nprocs out: the Dask cluster has its own workers",
            )
        return self.processes or os.cpu_count() or 1

    def store_options(self, progress: Progress) -> dict[str, Any]:
        """Keyword arguments of `StoreOptions`."""
        return {
            "filters": self.labels,
            "filter_file": self.filter_file,
            "part": self.part,
            "processes": self.workers,
            "scheduler": self.scheduler,
            "verify": self.verify,
            "progress": progress.count,
        }

    def check(self) -> None:
        """Validate the options before any work.

        Raises:
            UsageError: contradictory options.
        """
        _ = self.part, self.workers

    @property
    def only_for_stores(self) -> bool:
        """True if any option was given that does not apply to token files."""
        plain = (self.processes, self.scheduler, *self.parts)
        return any(one is not None for one in plain) or any(
            (*self.filters.values(), self.filter_file, self.verify, self.dry_run, self.as_json)
        )
