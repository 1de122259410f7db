"""The verbs `prepare`, `encode` and `fit-scaling`: scans to a store, to tokens, or to the scaling of parcels."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from neuroflamingo.cli.asking import card_options
from neuroflamingo.cli.failures import say_error
from neuroflamingo.cli.progress import Progress
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, UsageError

if TYPE_CHECKING:
    from neuroflamingo.encoding import EncoderChoice
    from neuroflamingo.store_making import Summary

SOME_FAILED = 1
SHOWN = 10
BLOCK_BYTES = 2**26


class Cost(NamedTuple):
    """Of a worker, on one core of 2.8 GHz: memory held before any scan, seconds to start, seconds a volume or frame."""

    megabytes: int
    start: float
    each: float


COSTS = {"volume3d": Cost(800, 7.0, 1.5), "volume4d": Cost(480, 7.0, 0.09), "parcels": Cost(200, 2.0, 0.01)}
"""Measured: heads at 1 mm and of twice the voxels (830 and 863 MB, 8.7 s; three more heads 4.7 s); runs of 100 and 400
frames at 2 mm to frames (1,285 and 3,324 MB, 17 and 44 s) and to 424 parcels (308 MB, 2.8 and 5.3 s)."""


@dataclass(frozen=True)
class Asked:
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
        return {
            entity: tuple(w for v in values or () for w in v.replace(",", " ").split())
            for entity, values in self.filters.items()
        }

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
        """What `Spread` takes."""
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


def prepare_scans(
    source: str, output: str, *, encoder: str, options: Sequence[str], preparation: dict[str, Any], asked: Asked
) -> int:
    """Prepare and say what became of it; 1 if some scans failed, the scan's own code if there was one only."""
    from neuroflamingo.encoder_input import Preparation
    from neuroflamingo.store_making import prepare_into_store
    from neuroflamingo_encoders.registry import encoder_card

    asked.check()
    card = encoder_card(encoder, **card_options(options))
    how = Preparation.of(card.scan, **preparation)
    if asked.dry_run:
        return _tell(estimate(source, output, card, asked, how.series), asked)
    with Progress(quiet=asked.quiet) as progress:
        progress(f"preparing for {card.name}")
        done = prepare_into_store(source, output, card, how, **asked.spread(progress))
    return _say(done, output, "prepared", asked)


def encode_scans(
    scans: Sequence[str],
    output: str,
    *,
    encoder: str,
    options: Sequence[str],
    weights: Mapping[str, Any],
    preparation: dict[str, Any],
    device: str,
    dtype: str | None,
    overwrite: bool,
    asked: Asked,
) -> int:
    """Encode scans into one file or into a store, as the output's name says; 1 if some of several failed."""
    from neuroflamingo.encoder_input import Preparation
    from neuroflamingo.encoding import EncoderChoice
    from neuroflamingo_encoders.token_files import check_token_target

    if weights["init"] not in (None, "random"):
        raise UsageError(f"--init {weights['init']}", expected="random", seen=weights["init"])
    choice = EncoderChoice(encoder, card_options(options), **weights)
    if not _is_store(scans, output):
        check_token_target(output, overwrite=overwrite)
        if asked.only_for_stores or dtype is not None:
            raise UsageError(
                f"{Path(output).name} is one file: what was asked is for stores",
                expected="-o FOLDER without an ending",
                hint=f"-o {Path(output).stem}",
            )
        how = Preparation.of(choice.card.scan, **preparation)
        return _encode_to_file(scans, output, choice, how, device=device, overwrite=overwrite, quiet=asked.quiet)
    if len(scans) != 1 or overwrite:
        raise UsageError(
            "a store takes one input" if len(scans) != 1 else "--overwrite is for token files",
            expected="a folder, a BIDS dataset, a manifest, a scan store or a scan",
            seen=f"{len(scans)} inputs",
            hint="name the scans in a manifest" if len(scans) != 1 else "a store is gone on with; remove it yourself",
        )
    return _encode_to_store(scans[0], output, choice, preparation, device=device, dtype=dtype or "float32", asked=asked)


def _is_store(scans: Sequence[str], output: str) -> bool:
    """An ending of a token file says a file; no ending, or an input of many scans, says a store."""
    from neuroflamingo_encoders.token_files import ENDINGS
    from neuroflamingo_preprocessing.inputs import MANIFESTS

    if Path(output).suffix in ENDINGS:
        return False
    many = any(Path(scan).is_dir() or Path(scan).suffix.lower() in MANIFESTS for scan in scans)
    return many or not Path(output).suffix or (Path(output) / "store.json").is_file()


def _encode_to_file(
    scans: Sequence[str], output: str, choice: EncoderChoice, how: Any, *, device: str, overwrite: bool, quiet: bool
) -> int:
    from neuroflamingo.encoding import encode

    with Progress(quiet=quiet) as progress:
        progress(f"encoding with {choice.name}")
        done = encode(scans, output, choice, how, device=device, overwrite=overwrite, progress=progress.count)
    for name, failure in done.failures:
        say_error(f"{name}: {failure}")
    if done.failures:
        say_error(f"{len(done.failures)} of {len(scans)} scans could not be encoded")
    print(done.path)
    return SOME_FAILED if done.failures else 0


def _encode_to_store(
    source: str,
    output: str,
    choice: EncoderChoice,
    preparation: dict[str, Any],
    *,
    device: str,
    dtype: str,
    asked: Asked,
) -> int:
    from dataclasses import replace

    from neuroflamingo.encoder_input import Preparation
    from neuroflamingo.store_making import encode_into_store

    one_at_a_time = asked.processes is None and asked.scheduler is None  # each worker holds the encoder
    asked = replace(asked, processes=1) if one_at_a_time else asked
    asked.check()
    how = Preparation.of(choice.card.scan, **preparation)
    if asked.dry_run:
        return _tell(estimate(source, output, choice.card, asked, how.series, tokens=dtype), asked)
    with Progress(quiet=asked.quiet) as progress:
        progress(f"encoding with {choice.name}")
        done = encode_into_store(source, output, choice, how, device=device, dtype=dtype, **asked.spread(progress))
    return _say(done, output, "encoded", asked)


def _tell(plan: Mapping[str, Any], asked: Asked) -> int:
    print(json.dumps(plan, indent=2) if asked.as_json else _plan_in_words(plan))
    return 0


def _say(done: Summary, output: str, verb: str, asked: Asked) -> int:
    for note in () if asked.quiet else done.notes:
        print(f"note: {note}", file=sys.stderr)
    for failure in done.failures[:SHOWN]:
        say_error(str(failure["error"]))
    if len(done.failures) > SHOWN:
        say_error(f"and {len(done.failures) - SHOWN} more: see {Path(output) / 'log.jsonl'}")
    if asked.as_json:
        print(json.dumps(asdict(done), indent=2))
    else:
        again = f", {done.dropped} damaged ones dropped" if done.dropped else ""
        counts = f"{done.done} {verb}, {done.present} were there, {done.failed} failed{again}"
        print(f"{output}: {counts}; {done.seconds:.1f} s")
    if not done.failed:
        return 0
    return int(done.failures[0]["exit_code"]) if done.scans == 1 else SOME_FAILED


def estimate(
    source: str, output: str, card: Any, asked: Asked, series: int | None = None, *, tokens: str | None = None
) -> dict[str, Any]:
    """The plan of a run, with rough figures from the headers; nothing is written.

    Args:
        source, output, card, asked: of the run.
        series: of DICOM inputs.
        tokens: type of the tokens' numbers, if the scans are to be encoded too.
    """
    from neuroflamingo.store_making import Spread
    from neuroflamingo_preprocessing.inputs import find_inputs

    if (Path(source) / "store.json").is_file():
        raise UsageError("--dry-run is for scans, not for a store", hint="a run into a store can be stopped any time")
    notes: list[str] = []
    found = find_inputs(source, card.scan, asked.labels, filter_file=asked.filter_file, notes=notes)
    inputs = Spread(part=asked.part).share(found)
    wanted: Literal["T1w", "bold"] = "bold" if card.scan.modality in ("volume4d", "parcels") else "T1w"
    looked = [_look(one.path, wanted, one.series or series) for one in inputs]
    known = [one for one in looked if one is not None]
    cost = COSTS.get(card.scan.modality, COSTS["volume3d"])
    seconds = sum(cost.each * frames for _, frames in known)
    largest = max((_held(voxels, frames, card.scan) for voxels, frames in known), default=0)
    out = sum(_stored(frames, card.scan) for _, frames in known)
    if tokens is not None:
        sizes = {axis.name: axis.size for axis in card.scan.axes if axis.size is not None}
        windows = sum(max(1, frames // sizes.get("time", frames)) for _, frames in known)
        count = card.output.token_count(sizes) if len(sizes) == len(card.scan.axes) else 0
        out = windows * count * card.output.width * (2 if tokens == "float16" else 4)
        seconds += windows * (card.cost.cpu_seconds or 0.0)
    return {
        "encoder": card.name,
        "input": card.scan.describe(),
        "scans": len(inputs),
        "unreadable": len(looked) - len(known),
        "output": output,
        "workers": asked.workers,
        "memory_per_worker_mb": round(cost.megabytes + largest / 2**20),
        "store_mb_before_compression": round(out / 2**20, 1),
        "minutes": round((cost.start * bool(known) + seconds / asked.workers) / 60, 1),
        "notes": notes,
        "first": [one.name for one in inputs[:SHOWN]],
    }


def _stored(frames: int, spec: Any) -> int:
    """Bytes of the tensors of one scan: float32, whole windows of a run, or its frames where the length is free."""
    item = 4 * math.prod(axis.size or 1 for axis in spec.axes)
    time = next((axis for axis in spec.axes if axis.name == "time"), None)
    return item if time is None else item * (max(1, frames // time.size) if time.size else frames)


def _held(voxels: int, frames: int, spec: Any) -> int:
    """Bytes that one scan takes: a volume and its tensor once; of a run a block and all windows, twice."""
    if frames == 1:
        return 4 * voxels + _stored(frames, spec)
    return 2 * (min(4 * voxels * frames, BLOCK_BYTES) + _stored(frames, spec))


def _look(path: Path, wanted: Literal["T1w", "bold"], series: int | None) -> tuple[int, int] | None:
    """Voxels of a volume and how many volumes, from the header; None if that cannot be read, (0, 1) for arrays."""
    from neuroflamingo_preprocessing.dicom_files import is_dicom_input
    from neuroflamingo_preprocessing.runs import look

    if is_dicom_input(path):
        return _look_at_dicom(path, wanted, series)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return 0, 1
    try:
        sizes = look(path)
    except NeuroFlamingoError:
        return None
    return math.prod(sizes[:3]), math.prod(sizes[3:])


def _look_at_dicom(path: Path, wanted: Literal["T1w", "bold"], series: int | None) -> tuple[int, int] | None:
    from neuroflamingo_preprocessing.dicom import list_series
    from neuroflamingo_preprocessing.dicom_choice import choose_series

    try:
        chosen, _ = choose_series(list_series(path), wanted, series)
    except NeuroFlamingoError as error:
        if error.exit_code == 69:
            raise
        return None
    return chosen.rows * chosen.columns * chosen.slices, chosen.volumes


def _plan_in_words(plan: Mapping[str, Any]) -> str:
    files = ", ".join(plan["first"]) + (", ..." if plan["scans"] > len(plan["first"]) else "")
    lines = [
        f"{plan['scans']} scans for {plan['encoder']}: {plan['input']}",
        f"  files    {files}",
        f"  into     {plan['output']}, at most {plan['store_mb_before_compression']} MB before compression",
        f"  memory   about {plan['memory_per_worker_mb']} MB for each of {plan['workers']} workers",
        f"  time     {_time_in_words(plan['minutes'])}, going by the headers; scans that are there already take none",
    ]
    if plan["unreadable"]:
        lines.append(f"  headers  {plan['unreadable']} are not here or cannot be read: check-scan says why")
    lines += [f"  note     {note}" for note in plan["notes"]]
    return "\n".join(lines)


def fit_scaling_of(
    source: str,
    output: str,
    *,
    encoder: str,
    options: Sequence[str],
    preparation: dict[str, Any],
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Fit and say what of; 1 if some runs failed."""
    from neuroflamingo.encoder_input import Preparation
    from neuroflamingo.scaling import fit_scaling
    from neuroflamingo_encoders.registry import encoder_card

    card = encoder_card(encoder, **card_options(options))
    how = Preparation.of(card.scan, **preparation)
    with Progress(quiet=quiet) as progress:
        progress(f"fitting the scaling of {card.name}")
        done = fit_scaling(source, output, card, how, overwrite=overwrite, progress=progress.count)
    for name, error in done.failures[:SHOWN]:
        say_error(f"{name}: {error}")
    counts = {"runs": done.runs, "frames": done.frames, "parcels": done.parcels, "failed": len(done.failures)}
    if as_json:
        print(json.dumps({"output": output, "encoder": card.name} | counts, indent=2))
    else:
        print(f"{output}: " + ", ".join(f"{value} {key}" for key, value in counts.items()))
    return SOME_FAILED if done.failures else 0


def _time_in_words(minutes: float) -> str:
    if minutes < 1:
        return "under a minute"
    return f"about {minutes:.0f} minutes" if minutes < 120 else f"about {minutes / 60:.0f} hours"
