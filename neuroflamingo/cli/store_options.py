"""Options shared by the commands that write stores."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroflamingo.cli.options import (
    LABELS,
    BidsFilterFile,
    Json,
    Participants,
    Quiet,
    Runs,
    Sessions,
    split_labels,
)
from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from neuroflamingo.progress import Progress


@dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """Store options of `prepare` and `encode`: scans to process, workers, and printed output."""

    nprocs: Annotated[
        int | None,
        typer.Option(
            "--nprocs", help="Scans processed in parallel; 0: one per core. Default: prepare 0, encode 1.", min=0
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler", metavar="ADDRESS", help="Dask scheduler: tcp://host:port, or local; extra `cluster`."
        ),
    ] = None
    participants: Participants = None
    sessions: Sessions = None
    tasks: Annotated[list[str] | None, typer.Option(LABELS[4], metavar="LABEL...", help="Tasks, likewise.")] = None
    runs: Runs = None
    bids_filter_file: BidsFilterFile = None
    num_parts: Annotated[int | None, typer.Option("--num-parts", help="Job array: total number of parts.", min=1)] = (
        None
    )
    part_id: Annotated[int | None, typer.Option("--part-id", help="Job array: number of this part, from 1.", min=1)] = (
        None
    )
    verify: Annotated[bool, typer.Option("--verify", help="Read back existing items and redo damaged ones.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, with estimates.")] = False
    json: Json = False
    quiet: Quiet = False

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """BIDS labels by entity, comma-separated lists split."""
        by_entity = {"sub": self.participants, "ses": self.sessions, "task": self.tasks, "run": self.runs}
        return split_labels(by_entity)

    @property
    def part(self) -> tuple[int, int] | None:
        """Number and count of a job array's parts.

        Raises:
            UsageError: one is given without the other.
        """
        if self.part_id is None and self.num_parts is None:
            return None
        if self.part_id is None or self.num_parts is None:
            raise UsageError("--num-parts and --part-id must be given together", expected="both or neither")
        return self.part_id, self.num_parts

    @property
    def workers(self) -> int:
        """Scans processed in parallel.

        Raises:
            UsageError: a number of workers for a scheduler that manages its own.
        """
        if self.scheduler not in (None, "local") and self.nprocs:
            raise UsageError(
                "--nprocs sets the workers of this machine",
                expected="either --scheduler or --nprocs",
                hint="leave --nprocs out: the Dask cluster has its own workers",
            )
        return self.nprocs or os.cpu_count() or 1

    def store_options(self, progress: Progress) -> dict[str, Any]:
        """Keyword arguments of `StoreOptions`."""
        return {
            "filters": self.labels,
            "filter_file": self.bids_filter_file,
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
        return replace(self, quiet=False) != StoreRequest()
