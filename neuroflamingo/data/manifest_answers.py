"""`write_answers`: a model's answers to the samples of a manifest, in batches of like length, kept as they are written.

Each line of the output is one sample. A run that was ended goes on where it was: lines that the same model made with
the same settings of the same sample and scans stay. A scan that cannot be read gets a line that says why, and is tried
again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from neuroflamingo.data.collate import stacked
from neuroflamingo.data.manifest import STORE, Sample
from neuroflamingo.data.scan_sources import open_scans
from neuroflamingo.data.templates import check_template, render
from neuroflamingo.data.validation_set import prompt_batch
from neuroflamingo.encoding.encode_job import encoder_identity
from neuroflamingo.inference.decode import mirror_axis
from neuroflamingo.model.prompt_forms import check_prompt
from neuroflamingo.model.tokens import token_ids
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, OutputError, UsageError
from neuroflamingo_preprocessing.files import check_writable, not_written, sha256_of_text, write_text_atomic
from neuroflamingo_preprocessing.records import json_lines
from neuroflamingo_preprocessing.software import installed_version

if TYPE_CHECKING:
    from neuroflamingo.data.scan_sources import ScanSource
    from neuroflamingo.inference.loaded_model import LoadedModel

LEAST_EACH = 4
"""Samples for each process below which starting it takes longer than it saves."""
Control = Literal["own", "blank", "mirrored"]
Scans = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are written.

    Attributes:
        template: of turns, as in the recipe's `data.template`; reports have one form only.
        batch: samples at a time.
        max_new_tokens: most tokens of an answer.
        processes: that read and prepare scans; 1 works in this process, None is one a core.
        scans, tokens: folders of a store, as in a recipe.
        force: also prompts that the model was not trained for.
    """

    template: str = "plain"
    batch: int = 8
    max_new_tokens: int = 400
    processes: int | None = None
    scans: Path | None = None
    tokens: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class Answers:
    """Answers by id, and why there is none of some."""

    texts: dict[str, str]
    failed: dict[str, str]


def write_answers(
    opened: LoadedModel,
    samples: Sequence[Sample],
    outputs: Mapping[Control, str | Path],
    settings: AnswerSettings,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[Control, Answers]:
    """Write the model's answers to the last question of each sample; greedy decoding. Each scan is prepared once.

    Args:
        opened: the loaded model.
        samples: of `read_manifest`, of any kind. A report is asked for by its scans, an answer by all that stands
            before it.
        outputs: JSON lines for the scans themselves (`own`), and for controls: `blank`, all scans are empty;
            `mirrored`, left and right of the prepared scans are exchanged. Each line has `id`, `prediction`, `ended`
            (the model came to an end) or `error`, and `key`, a hash of all that the answer depends on.
        settings: see `AnswerSettings`.
        overwrite: replace files that are no such output.
        progress: called with what is done, how many, and of how many.

    Raises:
        ConfigError: unknown template.
        ModelError: a prompt that the model was not trained for; a store of another encoder.
        UsageError: heads of this model cannot be mirrored.
        OutputError: an output cannot be written, or holds something else.
    """
    tokenizer = opened.processor.tokenizer
    check_template(settings.template, tokenizer)
    prompts = {one.id: render(one, settings.template, tokenizer).prompt for one in samples}
    for prompt in set(prompts.values()):
        check_prompt(prompt, opened.prompts, force=settings.force)
    source = _source(opened, samples, settings)
    logs = [_Log(control, Path(path), opened, settings) for control, path in outputs.items()]
    for log in logs:
        log.take_up(samples, overwrite=overwrite)
    left = [one for one in samples if any(one.id not in log.rows for log in logs)]
    lengths = {one.id: len(token_ids(tokenizer, prompts[one.id])) for one in left}
    left.sort(key=lambda one: (len(one.scans), lengths[one.id]))
    done = len(samples) - len(left)
    for part in _parts(_read_all(source, left, settings.processes), settings.batch):
        for log in logs:
            log.answer(part)
        done += len(part)
        progress("written", done, len(samples))
    return {log.control: log.finish(samples) for log in logs}


class _Log:
    """The output of one control."""

    def __init__(self, control: Control, path: Path, opened: LoadedModel, settings: AnswerSettings) -> None:
        self.control: Control = control
        self.path, self.opened, self.settings = path, opened, settings
        self.change = _change(opened, control)
        self.keys: dict[str, str] = {}
        self.rows: dict[str, dict[str, Any]] = {}

    def take_up(self, samples: Sequence[Sample], *, overwrite: bool) -> None:
        """Keep the lines of an earlier run that are still right, and nothing else."""
        self.keys = {one.id: _key(self.opened, one, self.settings, self.control) for one in samples}
        self.rows = _kept(self.path, self.keys, overwrite=overwrite)
        write_text_atomic(self.path, _lines(self.rows.values()), overwrite=True)

    def answer(self, part: Sequence[tuple[Sample, Scans | NeuroFlamingoError]]) -> None:
        """Answer the samples of a batch that are not answered, and add their lines."""
        todo = [(one, scans) for one, scans in part if one.id not in self.rows]
        new: list[dict[str, Any]] = []
        good: list[tuple[Sample, Scans]] = []
        for one, scans in todo:
            if isinstance(scans, NeuroFlamingoError):
                new.append({"id": one.id, "error": scans.what + (f" ({scans.seen})" if scans.seen else "")})
            else:
                good.append((one, self.change(scans)))
        new += _written(self.opened, good, self.settings) if good else ()
        new = [row | {"key": self.keys[row["id"]]} for row in new]
        _append(self.path, new)
        self.rows |= {row["id"]: row for row in new}

    def finish(self, samples: Sequence[Sample]) -> Answers:
        """Put the lines into the order of the samples."""
        write_text_atomic(self.path, _lines(self.rows[one.id] for one in samples), overwrite=True)
        texts = {name: row["prediction"] for name, row in self.rows.items() if "prediction" in row}
        return Answers(texts, {name: row["error"] for name, row in self.rows.items() if "error" in row})


def can_mirror(opened: LoadedModel, settings: AnswerSettings) -> bool:
    """Whether left and right of this model's prepared scans can be exchanged."""
    card = opened.processor.card
    return card is not None and settings.tokens is None and mirror_axis(card.scan) is not None


def _source(opened: LoadedModel, samples: Sequence[Sample], settings: AnswerSettings) -> ScanSource | None:
    names = [name for one in samples for name in one.scans]
    if not names:
        return None
    encoder, card = opened.model.encoder, opened.processor.card
    return open_scans(
        names,
        card=card,
        width=opened.model.config.resampler["dim"] if card is None else None,
        weights=encoder_identity(encoder) if settings.tokens and encoder is not None else None,
        scans=settings.scans,
        tokens=settings.tokens,
    )


def _change(opened: LoadedModel, control: Control) -> Callable[[Scans], Scans]:
    """What a control does to the prepared scans of a sample."""
    if control == "own":
        return lambda scans: scans
    if control == "blank":
        shown = ("scan", "scan_tokens")
        return lambda scans: [{n: torch.zeros_like(v) if n in shown else v for n, v in s.items()} for s in scans]
    card = opened.processor.card
    axis = None if card is None else mirror_axis(card.scan)
    if axis is None:
        raise UsageError(
            "scans of this model cannot be mirrored", expected="heads on a grid symmetric about the midline"
        )
    return lambda scans: [{name: value.flip(axis) for name, value in scan.items()} for scan in scans]


def _key(opened: LoadedModel, one: Sample, settings: AnswerSettings, control: Control) -> str:
    """Hash of all that an answer depends on; of a scan's file its size and time of change."""
    files = [os.stat(name) for name in one.scans if not name.startswith(STORE) and os.path.isfile(name)]
    facts = (
        opened.record.digest,
        installed_version("neuroflamingo"),
        one.model_dump_json(exclude={"weight", "findings"}),
        [(about.st_size, about.st_mtime_ns) for about in files],
        [settings.template, settings.max_new_tokens, str(settings.scans), str(settings.tokens), control],
    )
    return sha256_of_text(json.dumps(facts))[:32]


def _kept(path: Path, keys: Mapping[str, str], *, overwrite: bool) -> dict[str, dict[str, Any]]:
    """Finished lines of an earlier run that are still right."""
    check_writable(path, overwrite=True)
    if not path.exists():
        return {}
    rows = [row for _, row in json_lines(path)]
    ours = [row for row in rows if isinstance(row, dict) and "key" in row and "id" in row]
    if rows and not ours and not overwrite:
        raise OutputError(
            f"{path.name} exists and holds something else",
            expected="no such file, or answers of an earlier run, which are then gone on with",
            hint="pass --overwrite, or another -o",
        )
    return {row["id"]: row for row in ours if "prediction" in row and keys.get(row["id"]) == row["key"]}


def _read_all(
    source: ScanSource | None, samples: Sequence[Sample], processes: int | None
) -> Iterator[tuple[Sample, Scans | NeuroFlamingoError]]:
    """Prepared scans of each sample, in order, or why there are none."""
    workers = min(processes or os.cpu_count() or 1, len(samples) // LEAST_EACH)
    if workers <= 1 or source is None:
        yield from ((one, _tensors(_read(source, one))) for one in samples)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        under_way: deque[tuple[Sample, Any]] = deque()
        for one in samples:
            under_way.append((one, pool.submit(_read, source, one)))
            if len(under_way) > 2 * workers:
                done, result = under_way.popleft()
                yield done, _tensors(result.result())
        while under_way:
            done, result = under_way.popleft()
            yield done, _tensors(result.result())


def _read(source: ScanSource | None, one: Sample) -> list[dict[str, Any]] | NeuroFlamingoError:
    """Arrays, which pass between processes without torch's shared memory."""
    if source is None:
        return []
    try:
        return [{name: value.numpy() for name, value in source.read(scan, 0).items()} for scan in one.scans]
    except NeuroFlamingoError as error:
        return error


def _tensors(read: list[dict[str, Any]] | NeuroFlamingoError) -> Scans | NeuroFlamingoError:
    if isinstance(read, NeuroFlamingoError):
        return read
    return [{name: torch.from_numpy(value) for name, value in scan.items()} for scan in read]


def _parts(
    read: Iterator[tuple[Sample, Scans | NeuroFlamingoError]], batch: int
) -> Iterator[list[tuple[Sample, Scans | NeuroFlamingoError]]]:
    """Batches of samples with equal numbers of scans."""
    part: list[tuple[Sample, Scans | NeuroFlamingoError]] = []
    for one in read:
        if part and (len(part) == batch or len(part[0][0].scans) != len(one[0].scans)):
            yield part
            part = []
        part.append(one)
    if part:
        yield part


@torch.inference_mode()
def _written(
    opened: LoadedModel, part: Sequence[tuple[Sample, Scans]], settings: AnswerSettings
) -> Iterator[dict[str, Any]]:
    tokenizer, model = opened.processor.tokenizer, opened.model
    given = prompt_batch([one for one, _ in part], settings.template, tokenizer) | stacked([scans for _, scans in part])
    inputs: dict[str, Any] = {
        name: value.to(opened.device) for name, value in given.items() if isinstance(value, torch.Tensor)
    }
    ids = model.generate(**inputs, max_new_tokens=settings.max_new_tokens, do_sample=False)
    new = ids[:, inputs["input_ids"].shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    ends = set(end) if isinstance(end, list) else {end}
    for (one, _), row in zip(part, new, strict=True):
        text = tokenizer.decode(row, skip_special_tokens=True).strip()
        yield {"id": one.id, "prediction": text, "ended": bool(ends & set(row))}


def _lines(rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(_lines(rows))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise not_written(path, error) from error
