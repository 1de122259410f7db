"""Import of datasets in other formats. Unusable rows are left out and counted by reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuroflamingo.data.bids_reports import from_bids
from neuroflamingo.data.import_report import Conversion, ImageFolder
from neuroflamingo.model.tokens import IMAGE
from neuroflamingo_preprocessing.records import records

__all__ = ["Conversion", "from_bids", "from_dolly_alpaca", "from_llava", "from_medpix_qa"]

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
NAMES = {"image": ("image_id", "image_ids", "image", "images"), "case": ("case_id", "case", "U_id")}
"""Alternative column names of clinical questions."""


def from_llava(file: str | Path, images: str | Path, *, extract: bool = False) -> Conversion:
    """Import LLaVA conversations: `id`, `image` (one or several), `conversations` of `from` (human, gpt) and `value`.

    Rows without an image become text. Each image needs one `<image>` in the human's turns, whose position is kept. Such
    data have no subjects.

    Args:
        file: a JSON list, JSON lines or parquet table.
        images: folder that image paths are relative to.
        extract: extract images embedded in a parquet table to that folder.

    Raises:
        NotFoundError: the file or folder does not exist (exit 66).
        ScanError: the file cannot be read (exit 65).
    """
    found, folder = Conversion(), ImageFolder(images, extract=extract)
    for number, row in records(file):
        if isinstance(row, str):
            found.left_out[row].append(number)
            continue
        files = folder.files_of(row.get("image") or row.get("images"))
        turns = _turns(row.get("conversations") or row.get("conversatons"))  # spelling in LLaVA-Med's files
        if isinstance(files, str):
            found.left_out[files].append(number)
        elif turns is None:
            found.left_out["conversations that are not of human and gpt"].append(number)
        else:
            kind = "instructions" if files else "text"
            found.add(number, str(row.get("id") or f"{Path(file).stem}-{number}"), kind=kind, scans=files, turns=turns)
    return found


def _turns(conversation: Any) -> list[dict[str, str]] | None:
    turns = []
    for said in conversation if isinstance(conversation, list) else [None]:
        if not isinstance(said, Mapping):
            return None
        role, text = ROLES.get(str(said.get("from", said.get("role")))), said.get("value", said.get("content"))
        if role is None or not isinstance(text, str):
            return None
        turns.append({"role": role, "text": text.strip()})
    return turns


def from_medpix_qa(
    file: str | Path, images: str | Path, *, split: str | None = None, join: bool = True, extract: bool = False
) -> Conversion:
    """Import clinical questions in MedPix ClinQA's format: image_id, case_id, question, answer, split.

    Rows of a case with the same question and answer become one sample with several images; so does a row whose
    `image_id` is a list. The case is the subject, so that no case is in both splits.

    Args:
        file: a CSV, parquet, JSON or JSON-lines table.
        images: folder that image paths are relative to; the table may omit extensions.
        split: use only the rows of this split (`Train`, ...).
        join: False makes a sample of each row.
        extract: extract images embedded in a parquet table to that folder.

    Raises:
        NotFoundError: the file or folder does not exist (exit 66).
        ScanError: the file cannot be read (exit 65).
    """
    found, folder = Conversion(), ImageFolder(images, extract=extract)
    groups: dict[Any, tuple[int, str | None, dict[str, None]]] = {}
    others = 0
    for number, row in records(file):
        if isinstance(row, str):
            found.left_out[row].append(number)
            continue
        if split is not None and str(row.get("split", "")).casefold() != split.casefold():
            others += 1
            continue
        case, question, answer = _text(_one_of(row, "case")), _text(row.get("question")), _text(row.get("answer"))
        files = folder.files_of(_one_of(row, "image"))
        if not question or not answer:
            found.left_out["no question or no answer"].append(number)
        elif not files or isinstance(files, str):
            found.left_out[str(files or "no image is named")].append(number)
        else:
            key = (case, question, answer, None if join and case else number)
            groups.setdefault(key, (number, case, {}))[2].update(dict.fromkeys(files))
    if others:
        found.notes.append(f"{others} rows belong to other splits than {split}")
    for (_, question, answer, _), (number, case, names) in groups.items():
        turns = [{"role": "user", "text": IMAGE * len(names) + question}, {"role": "assistant", "text": answer}]
        found.add(
            number,
            case or f"{Path(file).stem}-{number}",
            kind="instructions",
            subject=case,
            scans=list(names),
            turns=turns,
        )
    return found


def _one_of(row: Mapping[str, Any], what: str) -> Any:
    return next((row[name] for name in NAMES[what] if row.get(name) is not None), None)


def _text(cell: Any) -> str | None:
    return (str(cell).strip() or None) if isinstance(cell, str | int) else None


def from_dolly_alpaca(file: str | Path) -> Conversion:
    """Import text-only instructions: Dolly (instruction, context, response) or Alpaca (instruction, input, output).

    A context or input follows its instruction after an empty line.

    Args:
        file: a JSON list, JSON lines or parquet table.

    Raises:
        NotFoundError: no such file (exit 66).
        ScanError: it cannot be read (exit 65).
    """
    found = Conversion()
    for number, row in records(file):
        if isinstance(row, str):
            found.left_out[row].append(number)
            continue
        question, context = _text(row.get("instruction")), _text(row.get("context")) or _text(row.get("input"))
        answer = _text(row.get("response")) or _text(row.get("output"))
        if not question or not answer:
            found.left_out["no instruction or no response"].append(number)
            continue
        turns = [
            {"role": "user", "text": "\n\n".join(part for part in (question, context) if part)},
            {"role": "assistant", "text": answer},
        ]
        found.add(number, str(row.get("id") or f"{Path(file).stem}-{number}"), kind="text", turns=turns)
    return found
