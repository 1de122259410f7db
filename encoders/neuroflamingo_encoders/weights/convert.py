"""`convert_weights`: convert a checkpoint to safetensors; it is opened in a process of its own, see `unpickle`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_encoders.build import outline
from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_encoders.state_dict_fit import check_hash
from neuroflamingo_encoders.weights.cache import READY, weights_folder
from neuroflamingo_preprocessing.drafts import draft_file
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, UsageError, not_created
from neuroflamingo_preprocessing.files import check_writable, move_atomic, sha256_of

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard

CHILD = "neuroflamingo_encoders.weights.unpickle"
SECONDS = 600
SLACK_BYTES = 2**30
BAD = 65


@dataclass(frozen=True)
class ConvertedWeights:
    """Result of a conversion.

    Attributes:
        path, sha256, bytes: the new file.
        source_sha256: hash of the original file.
        encoder: encoder that the tensors were checked against; None: not checked.
        chosen: keys of the weights in the file (`.`: the file itself).
        found: every part of the file with tensors, and their number.
        tensors: number of tensors written.
        left_out: names that were not written: not tensors, dropped, or not needed by the encoder.
        unknown: names of classes whose objects were skipped (`skip_unknown`).
    """

    path: str
    sha256: str
    bytes: int
    source_sha256: str
    encoder: str | None
    chosen: str
    found: dict[str, int]
    tensors: int
    left_out: tuple[str, ...]
    unknown: tuple[str, ...]


def convert_weights(
    file: str | Path,
    output: str | Path | None = None,
    *,
    encoder: str | None = None,
    key: str | None = None,
    drop: tuple[str, ...] = (),
    skip_unknown: bool = False,
    overwrite: bool = False,
    seconds: int = SECONDS,
    memory_bytes: int | None = None,
) -> ConvertedWeights:
    """Convert a `.ckpt`, `.pt`, `.pth.tar`, `.bin` or `.safetensors` file to safetensors.

    Nothing in the file is executed: torch's restricted unpickler opens it, in a process with limited memory and time.
    Tied tensors are written once for each name.

    Args:
        file: the checkpoint.
        output: the new file; None: the encoder's own folder, where `encode` and `find_weights` look.
        encoder: remove the card's prefixes, and check strictly that the tensors fit this encoder.
        key: key of the weights in the file, for instance `model_state_dict`; None: the usual keys.
        drop: prefixes of tensor names (as in the file) to leave out.
        skip_unknown: skip objects of unknown classes (a trainer's settings) instead of refusing the file.
        overwrite: replace an existing output.
        seconds, memory_bytes: limits of the process; memory on top of torch's own, None: by the size of the file.

    Raises:
        NotFoundError: no such file.
        ModelError: damaged, not weights, with code in it, or of another encoder (exit 65); over a limit (exit 75).
        OutputError: the output exists or cannot be written.
        UsageError: neither output nor encoder, or an output that does not end in `.safetensors`.
    """
    path = Path(file)
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", expected="a checkpoint", hint="check the path")
    card = None if encoder is None else encoder_card(encoder)
    target = _target(output, card, overwrite)
    before = sha256_of(path)
    if card is not None and card.weights.file and Path(card.weights.file).name == path.name:
        check_hash(card, path, before)
    with draft_file(target) as draft:
        job = _job(path, draft, card, before) | {"key": key, "drop": list(drop), "skip_unknown": skip_unknown}
        bounds = {"seconds": seconds, "memory": memory_bytes or 4 * path.stat().st_size + SLACK_BYTES}
        answer = _ask(job | bounds, path)
        after, size = sha256_of(draft), draft.stat().st_size
        move_atomic(draft, target, overwrite=overwrite)
    return ConvertedWeights(
        path=str(target),
        sha256=after,
        bytes=size,
        source_sha256=before,
        encoder=encoder,
        chosen=answer["chosen"],
        found=answer["found"],
        tensors=len(answer["shapes"]),
        left_out=tuple(answer["left_out"]),
        unknown=tuple(answer["unknown"]),
    )


def _target(output: str | Path | None, card: EncoderCard | None, overwrite: bool) -> Path:
    if output is None and card is None:
        raise UsageError(
            "no output for the converted weights",
            expected="-o OUT.safetensors, or --encoder NAME",
            seen="neither",
        )
    if output is None and card is not None:
        target = weights_folder(card.name) / f"{card.name}{READY}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_created(target.parent, error) from error
    else:
        target = Path(str(output))
    if target.suffix != READY:
        raise UsageError(
            f"-o {target.name}: only safetensors are written",
            expected=f"a name that ends in {READY}",
            seen=target.suffix or "no extension",
            hint=f"-o {target.stem}{READY}",
        )
    return check_writable(target, overwrite=overwrite)


def _job(path: Path, draft: Path, card: EncoderCard | None, before: str) -> dict[str, Any]:
    metadata = {"format": "pt", "converted_from_sha256": before}
    if card is not None:
        metadata |= {"encoder": card.name, "card_digest": card.digest}
    return {
        "path": str(path.absolute()),
        "out": str(draft.absolute()),
        "safetensors": path.suffix == READY,
        "card": None if card is None else card.model_dump(mode="json"),
        "own": None if card is None else {name: list(shape) for name, shape in outline(card).items()},
        "metadata": metadata,
    }


def _ask(job: dict[str, Any], path: Path) -> dict[str, Any]:
    """Run the child process and translate its faults to errors; this process loads nothing of the file."""
    # -P: else a torch.py beside the checkpoint would be imported as torch.
    places = os.pathsep.join(place for place in sys.path if place)
    settings = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", CHILD],
            input=json.dumps(job),
            env=settings,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=job["seconds"] + 60,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _out_of_bounds(path, "time", f"more than {job['seconds']} s") from error
    answer = _parse(done.stdout)
    if "refused" in answer:
        parts = answer["refused"]
        raise ModelError(parts.pop("what"), **parts, exit_code=BAD)
    if "memory" in answer:
        raise _out_of_bounds(path, "memory", f"more than {job['memory']:,} bytes")
    if "shapes" in answer:
        return answer
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode in (-9, -24):  # SIGKILL, SIGXCPU
        raise _out_of_bounds(path, "time or memory", f"the process was stopped by signal {-done.returncode}")
    raise ModelError(
        f"{path.name} cannot be opened as weights",
        expected="a file that torch.save wrote",
        seen=f"status {done.returncode}: {last[:300]}",
        hint="copy or download it again",
        exit_code=BAD,
    )


def _parse(text: str) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _out_of_bounds(path: Path, what: str, seen: str) -> ModelError:
    return ModelError(
        f"opening {path.name} took too much {what}",
        expected="a checkpoint whose weights fit into memory three times",
        seen=seen,
        hint="use a machine with more memory",
        exit_code=75,
    )
