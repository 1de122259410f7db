"""The truth file of `evaluate --scans`: which real scans there are, and what is known of them and by whom."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.findings.vocabulary import FOCAL, Finding, FindingClass, Region, Side
from neuroflamingo.settings import MAX_QUOTED, Section, faults_in_words
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, ScanError, did_you_mean
from neuroflamingo_preprocessing.files import read_json
from neuroflamingo_preprocessing.formats.described import described_by_name
from neuroflamingo_preprocessing.scan import ScanModality
from neuroflamingo_preprocessing.user_files import check_input

MAX_SHOWN = 60
"""Most faults of one message."""
MAX_VOXELS = 2**30
MASK_FROM = 0.5
"""Value from which a voxel belongs to a mask without a `label`."""


def _named(words: Any) -> Finding:
    """What plain words name, by the parser of reports: "glioma" is a mass, "infarct over 20 mm" has a size."""
    found = parse_report(f"FINDINGS: {words}.").findings if isinstance(words, str) else ()
    if not found or any(finding.kind is not found[0].kind for finding in found):
        near = did_you_mean(str(words), list(FindingClass))
        raise ValueError(f"unknown class (seen: {words!r:.60}; known: {', '.join(FindingClass)})" + near)
    return found[0]


def _class(words: Any) -> FindingClass:
    return _named(words).kind


def _region(words: Any) -> Region:
    found = parse_report(f"FINDINGS: Mass in the {words}.").findings if isinstance(words, str) else ()
    region = next((one for one in Region if one == words), found[0].region if len(found) == 1 else None)
    if region is None:
        raise ValueError(f"unknown region (seen: {words!r:.60}; known: {', '.join(Region)})")
    return region


def _list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


ClassName = Annotated[FindingClass, BeforeValidator(_class)]
Regions = Annotated[tuple[Annotated[Region, BeforeValidator(_region)], ...], BeforeValidator(_list)]
Sizes = Annotated[tuple[Annotated[float, Field(gt=0, le=300)], ...], BeforeValidator(_list)]
Grades = Annotated[tuple[Annotated[int, Field(ge=1, le=3)], ...], BeforeValidator(_list)]


class KnownFinding(Section):
    """A finding that is known to be there; what is not given is not scored.

    Attributes:
        kind: the class (`class` in the file): one of the six, or words that name one, such as "stroke" or "glioma".
        side: of the patient.
        regions: (`region`) one or several; any of them counts as right.
        size_mm: longest diameter in the patient's millimetres; of several numbers the largest counts.
        grade: 1 to 3; of several any counts as right.
        size, age, ml, number, largest_mm, note, by: for people; not scored.
    """

    kind: ClassName = Field(alias="class")
    side: Side | None = None
    regions: Regions = Field(default=(), alias="region")
    size_mm: Sizes = ()
    grade: Grades = ()
    size: str | None = None
    age: str | float | None = None
    ml: float | None = None
    number: int | None = None
    largest_mm: float | None = None
    note: str | None = None
    by: str | None = None

    @classmethod
    def of(
        cls, kind: FindingClass, side: Side | None = None, regions: Sequence[Region] = (), size_mm: float | None = None
    ) -> KnownFinding:
        """A finding that was measured."""
        size = () if size_mm is None else (size_mm,)
        return cls.model_validate({"class": kind, "side": side, "region": list(regions), "size_mm": list(size)})

    @model_validator(mode="after")
    def _attributes_fit_class(self) -> KnownFinding:
        if self.size_mm and self.kind not in FOCAL:
            raise ValueError(f"{self.kind} has no size_mm")
        if self.grade and self.kind not in (FindingClass.WHITE_MATTER_LESIONS, FindingClass.VENTRICULAR_ENLARGEMENT):
            raise ValueError(f"{self.kind} has no grade")
        return self


class Absent(Section):
    """A class that is known to be absent (an entry of `not`); with `over_mm` only findings larger than that."""

    kind: ClassName = Field(alias="class")
    over_mm: float | None = None


def _absent(value: Any) -> Any:
    """`"infarct over 20 mm"` as `{"class": "infarct", "over_mm": 20}`."""
    if not isinstance(value, str):
        return value
    found = _named(value)
    return {"class": str(found.kind), "over_mm": found.size_mm}


class ScanEntry(Section):
    """A scan of an examination: its file and, if it is not T1-weighted, its contrast."""

    file: str = Field(min_length=1)
    contrast: ScanModality | None = None

    @property
    def kind(self) -> str:
        """Contrast as given, else as the file's name says it, else T1w."""
        return self.contrast or next(iter(described_by_name(Path(self.file).name)), "T1w")


class MaskEntry(Section):
    """A mask in the scans' space: its file, the class of what it marks, and the value of its voxels.

    Attributes:
        file: with the same world coordinates as the scans.
        kind: (`class`) None: that of the first finding.
        label: value of the voxels that count; None: all of 0.5 and more.
    """

    file: str = Field(min_length=1)
    kind: ClassName | None = Field(default=None, alias="class")
    label: int | None = None


def _file(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


def _files(value: Any) -> Any:
    return [_file(one) for one in _list(value)]


class Examination(Section):
    """One examination of one person.

    Attributes:
        scans: files, relative to the truth file; an ending (`.nii.gz`, `_T1w.nii.gz`) may be left out.
        person: whoever it is of; None: nobody else's.
        masks: (`mask`) masks of findings; measured in the template's space, they take the place of the listed findings
            of their class.
        findings: what is known to be there. What is not listed is not denied.
        absent: (`not`) classes that are known to be absent.
        complete: nothing but `findings` is there, so that anything else is invented. Without findings: a healthy head.
        by, note: who says so; for people.
    """

    scans: Annotated[tuple[ScanEntry, ...], BeforeValidator(_files), Field(min_length=1)]
    person: str | None = None
    masks: Annotated[tuple[MaskEntry, ...], BeforeValidator(_files)] = Field(default=(), alias="mask")
    findings: tuple[KnownFinding, ...] = ()
    absent: tuple[Annotated[Absent, BeforeValidator(_absent)], ...] = Field(default=(), alias="not")
    complete: bool = False
    by: str | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _does_not_contradict_itself(self) -> Examination:
        both = {one.kind for one in self.absent if one.over_mm is None} & {one.kind for one in self.findings}
        if both:
            raise ValueError(f"{', '.join(sorted(both))}: both among findings and not")
        if not self.findings and any(mask.kind is None for mask in self.masks):
            raise ValueError('mask: of what? Give {"file": ..., "class": ...}, or a finding')
        return self

    @property
    def healthy(self) -> bool:
        """True if nothing is there to be found."""
        return self.complete and not self.findings and not self.masks


@dataclass(frozen=True)
class Known:
    """An examination with its name and the paths of its files, in the order of its entries."""

    name: str
    about: Examination
    scans: tuple[Path, ...]
    masks: tuple[Path, ...]

    @property
    def person(self) -> str:
        """The person's name; the examination's if none is given."""
        return self.about.person or self.name


def read_truth(path: str | Path) -> tuple[Known, ...]:
    """Read a truth file and look for all files that it names.

    Raises:
        NotFoundError: there is no such file.
        ScanError: not a truth file, unknown classes, regions or keys, files that are not there, empty masks: all faults
            in one message (exit 65).
    """
    file = Path(path)
    check_input(file, "a JSON file of examinations, see docs/evaluate.md")
    hint = "see docs/evaluate.md for what a truth file holds"
    plain: dict[str, Any] = read_json(file, expected="a JSON object of examinations by name", hint=hint)
    faults: list[str] = [] if plain else ["no examination"]
    known: list[Known] = []
    for name, values in plain.items():
        try:
            about = Examination.model_validate(values)
        except ValidationError as error:
            faults += [f"{name}: {_with_alias(fault)}" for fault in faults_in_words(Examination, error)]
            continue
        known.append(_located(name, about, file.parent, faults))
    used = Counter(scan for one in known for scan in one.scans)
    faults += [f"{scan.name}: listed {times} times" for scan, times in used.items() if times > 1]
    if faults:
        shown = [fault if len(fault) <= 3 * MAX_QUOTED else f"{fault[: 3 * MAX_QUOTED]}..." for fault in faults]
        more = [f"and {len(faults) - MAX_SHOWN} more"] if len(faults) > MAX_SHOWN else []
        raise ScanError(
            f"{file.name} has {len(faults)} fault{'s' * (len(faults) > 1)}",
            seen="\n    ".join([*shown[:MAX_SHOWN], *more]),
            hint=hint,
        )
    return tuple(known)


def _with_alias(fault: str) -> str:
    return fault.replace("unknown key; did you mean absent?", "unknown key; did you mean not?")


def _located(name: str, about: Examination, folder: Path, faults: list[str]) -> Known:
    scans = [_find(name, entry.file, folder, faults) for entry in about.scans]
    masks = [_find(name, entry.file, folder, faults) for entry in about.masks]
    for entry, path in zip(about.masks, masks, strict=True):
        if path is not None:
            try:
                mask_voxels(path, entry.label)
            except NeuroFlamingoError as error:
                faults.append(f"{name}: mask {error.what}" + (f" ({error.seen})" if error.seen else ""))
    return Known(name, about, tuple(p for p in scans if p), tuple(p for p in masks if p))


def _find(name: str, words: str, folder: Path, faults: list[str]) -> Path | None:
    """The file or folder of that name; without its ending, the only one that begins so, also one folder below."""
    path = folder / words
    try:
        if path.exists():
            return path
        near = _begin_so(path) or [p for sub in _folders(folder, words) for p in _begin_so(sub / words)]
    except (OSError, ValueError) as error:  # a name that no file can have
        near, words = [], f"{words[:MAX_QUOTED]} ({getattr(error, 'strerror', None) or error})"
    exact = [p for p in near if p.name.startswith(f"{path.name}.")]
    found = exact if len(exact) == 1 else near
    if len(found) == 1:
        return found[0]
    several = f": {len(found)} files begin so ({', '.join(p.name for p in found[:3])})" if found else ""
    faults.append(f"{name}: there is no file {words}{several}")
    return None


def _begin_so(path: Path) -> list[Path]:
    """Files beside a path that have its name and an ending; sidecars are none."""
    if not path.parent.is_dir():
        return []
    found = [
        p for p in path.parent.iterdir() if p.name == path.name or p.name.startswith((f"{path.name}.", f"{path.name}_"))
    ]
    return sorted(p for p in found if p.suffix != ".json")


def _folders(folder: Path, words: str) -> list[Path]:
    """Folders in which a bare name is looked for too: those in the truth file's."""
    return [] if "/" in words or "\\" in words else sorted(p for p in folder.iterdir() if p.is_dir())


def mask_voxels(path: Path, label: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of a mask, `[x, y, z]` bool, and its affine to world mm.

    Raises:
        ScanError: it cannot be read, or is empty.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image: Any = nib.load(path)
        placed = not hasattr(image, "get_sform") or image.header["sform_code"] > 0 or image.header["qform_code"] > 0
        if len(image.shape) != 3 or not placed or math.prod(image.shape) > MAX_VOXELS:
            raise ValueError(f"shape {image.shape}" + (" without a place in the world" if not placed else ""))
        values = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, ValueError, EOFError, zlib.error, ImageFileError, HeaderDataError) as error:
        expected = "one 3D NIfTI or MGH volume whose header says where it lies; it may be cropped"
        raise ScanError(f"{path.name} is not a mask", expected=expected, seen=str(error)[:MAX_QUOTED]) from error
    voxels = values >= MASK_FROM if label is None else np.rint(values) == label
    if not voxels.any():
        what = "is empty" if label is None else f"has no voxel of value {label}"
        raise ScanError(f"{path.name} {what}", expected="voxels that mark the finding")
    return voxels, np.asarray(image.affine, dtype=np.float64)


def json_schema() -> dict[str, Any]:
    """Published JSON schema of a truth file (the same as docs/truth.schema.json)."""
    one = Examination.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = one.pop("$defs", {})
    _spell_plainly(one, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Truth file of neuroflamingo evaluate --scans",
        "description": "Examinations by name.",
        "type": "object",
        "minProperties": 1,
        "additionalProperties": one,
        "$defs": definitions,
    }


def _spell_plainly(one: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Let the schema say what may be written short: a text for a list of one, words for a class, a file's name."""
    known, absent = definitions["KnownFinding"]["properties"], definitions["Absent"]["properties"]
    for properties, name in ((known, "region"), (known, "size_mm"), (known, "grade")):
        several = properties[name]
        properties[name] = {"anyOf": [several["items"], several]}
    words = {"type": "string", "description": "one of the six classes, or words that name one"}
    known["class"] = absent["class"] = words
    definitions["MaskEntry"]["properties"]["class"] = words
    definitions.pop("FindingClass", None)
    known["region"]["anyOf"][0] = {"type": "string", "description": "a region, or words that name one"}
    known["region"]["anyOf"][1]["items"] = known["region"]["anyOf"][0]
    definitions.pop("Region", None)
    for name in ("scans", "mask"):
        items = {"anyOf": [{"type": "string"}, one["properties"][name]["items"]]}
        one["properties"][name] = {"anyOf": [{"type": "string"}, items["anyOf"][1], {"type": "array", "items": items}]}
    one["properties"]["not"]["items"] = {"anyOf": [words, one["properties"]["not"]["items"]]}
