"""Options that the verbs writing stores have in common."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuroflamingo.cli.options import taken_apart
from neuroflamingo.progress import Progress
from neuroflamingo_preprocessing.errors import UsageError


@dataclass(frozen=True)
class StoreRequest:
    """The options that both verbs take for a store."""

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
        """The filters, with lists taken apart."""
        return taken_apart(self.filters)

    @property
    def part(self) -> tuple[int, int] | None:
        """(number, count).

        Raises:
            UsageError: one without the other.
        """
        number, count = self.parts
        if number is None and count is None:
            return None
        if number is None or count is None:
            raise UsageError("--num-parts and --part-id go together", expected="both or neither")
        return number, count

    @property
    def workers(self) -> int:
        """Scans at a time.

        Raises:
            UsageError: a number of workers for a scheduler that has its own.
        """
        if self.scheduler not in (None, "local") and self.processes:
            raise UsageError(
                "--nprocs is for this machine", expected="--scheduler or --nprocs", hint="the scheduler has its workers"
            )
        return self.processes or os.cpu_count() or 1

    def spread(self, progress: Progress) -> dict[str, Any]:
        """What `StoreOptions` takes."""
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
        """Refuse options that contradict each other, before the work.

        Raises:
            UsageError: they do.
        """
        _ = self.part, self.workers

    @property
    def only_for_stores(self) -> bool:
        """Whether anything was asked that a token file has no use for."""
        plain = (self.processes, self.scheduler, *self.parts)
        return any(one is not None for one in plain) or any(
            (*self.filters.values(), self.filter_file, self.verify, self.dry_run, self.as_json)
        )
