"""Paths of a report's files, planned and checked before any long computation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neuroflamingo_preprocessing.errors import UsageError, not_created
from neuroflamingo_preprocessing.files import check_writable
from neuroflamingo_preprocessing.formats.dicom.archive import is_dicom_input

FORMATS = ("html", "json", "txt", "prov")
_ENDINGS = {"html": ".report.html", "json": ".report.json", "txt": ".report.txt", "prov": ".prov.json"}
_SCAN_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Targets:
    """Files of one report by format.

    `stdout` writes the JSON form to standard output instead; `folder` is to be made if it is not there.
    """

    title: str
    files: dict[str, Path]
    stdout: bool = False
    folder: Path | None = None


def title_of(scan: str | Path) -> str:
    """The scan's file name without folder and ending; `dicom` for DICOM, which is often called after the patient."""
    if is_dicom_input(scan):
        return "dicom"
    name = Path(scan).name
    for ending in _SCAN_ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return name


def parse_formats(text: str | None) -> tuple[str, ...] | None:
    """`html,json` as a tuple; None stays None.

    Raises:
        UsageError: an unknown format, or none at all.
    """
    if text is None:
        return None
    names = tuple(dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip()))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise UsageError(
            f"--format {text} is not a list of formats",
            expected=f"some of {', '.join(FORMATS)}, separated by commas",
            seen=", ".join(unknown) or "nothing",
            hint="--format html,json,txt",
        )
    return names


def plan_targets(scans: Sequence[str], output: str | None, formats: tuple[str, ...] | None) -> list[Targets]:
    """One `Targets` per report.

    Without `output` the files `NAME.report.html`, `.report.json`, `.report.txt` and `NAME.prov.json` go to the working
    directory. A folder takes the same names. A file name gives its own ending's format, or with several formats its
    stem gives their names. `-` gives JSON on standard output. A DICOM input is named `dicom`; where there are several,
    `dicom-2` is the second scan.

    Raises:
        UsageError: the name does not fit the formats or the number of reports.
    """
    titles = [title_of(scan) for scan in scans]
    if titles.count("dicom") > 1:
        titles = [f"dicom-{number}" if t == "dicom" else t for number, t in enumerate(titles, start=1)]
    if output == "-":
        if len(scans) != 1 or formats not in (None, ("json",)):
            raise UsageError(
                "-o - writes the JSON of one report to standard output",
                expected="one report, and no --format but json",
                seen=f"{len(scans)} reports, --format {','.join(formats or ('json',))}",
                hint="give -o FOLDER instead",
            )
        return [Targets(titles[0], {}, stdout=True)]
    if output is None or Path(output).is_dir() or output.endswith(("/", "\\")):
        return _in_folder(Path(output or "."), titles, formats or FORMATS)
    if len(scans) != 1:
        raise UsageError(
            f"{len(scans)} reports cannot all be {output}",
            expected="-o with an existing folder, or one that ends in /",
            seen=output,
            hint=f"-o {Path(output).stem}/",
        )
    return [Targets(titles[0], _from_file(Path(output), formats))]


def _in_folder(folder: Path, titles: list[str], formats: tuple[str, ...]) -> list[Targets]:
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        raise UsageError(
            f"several scans are named {twice[0]}, so their reports would be the same file",
            expected="scans with different file names",
            seen=", ".join(titles),
            hint="write them one at a time, each with its own -o",
        )
    return [
        Targets(title, {kind: folder / f"{title}{_ENDINGS[kind]}" for kind in formats}, folder=folder)
        for title in titles
    ]


def _from_file(path: Path, formats: tuple[str, ...] | None) -> dict[str, Path]:
    ending = path.suffix.lower().lstrip(".")
    if formats is None:
        if ending not in ("html", "json", "txt"):
            raise UsageError(
                f"-o {path.name}: the ending does not say which format is wanted",
                expected=".html, .json or .txt, or a folder",
                seen=path.suffix or "no ending",
                hint=f"-o {path.name}.html, or -o {path.name}/",
            )
        return {ending: path}
    stem = path.with_suffix("") if ending in FORMATS else path
    names = {kind: stem.with_name(f"{stem.name}.{'prov.json' if kind == 'prov' else kind}") for kind in formats}
    if ending in names:
        names[ending] = path
    return names


def check_targets(all_targets: Sequence[Targets], *, overwrite: bool) -> None:
    """Make the folder that was asked for and try every output before the long work.

    Raises:
        OutputError: an output exists, or its folder cannot be written (exit 73).
    """
    for targets in all_targets:
        if targets.folder is not None:
            make_folder(targets.folder)
        for path in targets.files.values():
            check_writable(path, overwrite=overwrite)


def make_folder(folder: Path) -> None:
    """Make a folder inside an existing one, if it is not there.

    Raises:
        OutputError: it cannot be made (exit 73).
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise not_created(folder, error) from error
