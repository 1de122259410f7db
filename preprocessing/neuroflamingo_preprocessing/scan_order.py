"""Order in time of two scans of one person. Dates are compared and forgotten: none is kept, shown or written."""

from __future__ import annotations

from datetime import datetime, time
from pathlib import Path
from typing import Any

from neuroflamingo_preprocessing.bids.entities import entities_of, folded_label
from neuroflamingo_preprocessing.bids.sidecars import read_sidecar
from neuroflamingo_preprocessing.errors import NeuroFlamingoError
from neuroflamingo_preprocessing.formats.dicom.archive import is_dicom_input
from neuroflamingo_preprocessing.formats.dicom.attributes import silenced
from neuroflamingo_preprocessing.formats.dicom.read_dicom import open_dicom
from neuroflamingo_preprocessing.formats.dicom.series_selection import choose_series
from neuroflamingo_preprocessing.records import records

_DATES = ("AcquisitionDateTime", "AcquisitionDate", "SeriesDate", "StudyDate")


def order_fault(baseline: Any, followup: Any, *, series: int | None = None) -> str | None:
    """Say why a follow-up seems older than its baseline; None if it does not, or nothing is known.

    Compared are the dates of DICOM headers, of JSON sidecars (`AcquisitionDateTime`) and of BIDS's `scans.tsv`
    (`acq_time`); else, of one subject, the numbers of the sessions.

    Args:
        baseline, followup: as given to `prepare`; a scan in memory has no date.
        series: number of the DICOM series, see `read_scan`.
    """
    if not isinstance(baseline, str | Path) or not isinstance(followup, str | Path):
        return None
    first, second = Path(baseline), Path(followup)
    times = acquisition_time(first, series), acquisition_time(second, series)
    if times[0] is not None and times[1] is not None:
        whole = any(moment.time() == time.min for moment in times if moment)  # one of them states the day only
        earlier = times[1].date() < times[0].date() if whole else times[1] < times[0]
        return "by the dates of acquisition" if earlier else None
    one, other = entities_of(first), entities_of(second)
    if one.get("sub") is None or one.get("sub") != other.get("sub"):
        return None
    sessions = [folded_label("ses", labels.get("ses", "")) for labels in (one, other)]
    numbers = [int(label) for label in sessions if label.isascii() and label.isdigit()]
    return "by the numbers of the sessions" if len(numbers) == 2 and numbers[1] < numbers[0] else None


def acquisition_time(path: Path, series: int | None = None) -> datetime | None:
    """When a scan was acquired; None where that is not stated, or not readable."""
    try:
        if is_dicom_input(path):
            return _of_dicom(path, series)
        stated = read_sidecar(path).values.get("AcquisitionDateTime") or _of_scans_table(path)
    except NeuroFlamingoError:  # the order is a remark: whatever is wrong with a scan is said where it is read
        return None
    return _moment(str(stated or ""))


def _of_dicom(path: Path, series: int | None) -> datetime | None:
    with open_dicom(path) as examination:
        chosen, _ = choose_series(examination.series, "T1w", series)
        from pydicom import dcmread

        try:
            with silenced():
                tags: list[Any] = [*_DATES, "AcquisitionTime"]
                data = dcmread(chosen.files[0], force=True, stop_before_pixels=True, specific_tags=tags)
                stated = {name: str(data.get(name) or "") for name in tags}
        except Exception:  # of many types, with values of the header in their messages
            return None
    if stated["AcquisitionDate"]:
        stated["AcquisitionDate"] += stated["AcquisitionTime"]
    return next((moment for name in _DATES if (moment := _moment(stated[name])) is not None), None)


def _of_scans_table(path: Path) -> str | None:
    """The scan's `acq_time` in the table of its session, or of its subject."""
    session = path.parent.parent
    names = [part for part in (session.parent.name, session.name) if part.startswith(("sub-", "ses-"))]
    table = session / f"{'_'.join(names)}_scans.tsv"
    if not names or not table.is_file():
        return None
    rows = (row for _, row in records(table, ("filename", "acq_time"), ragged=True) if isinstance(row, dict))
    wanted = path.relative_to(session).as_posix()
    return next((str(row.get("acq_time")) for row in rows if row.get("filename") == wanted), None)


def _moment(stated: str) -> datetime | None:
    """Date of a DICOM header or in ISO 8601, without its time zone."""
    text = stated.strip()
    for cut, form in ((14, "%Y%m%d%H%M%S"), (8, "%Y%m%d")):
        if text[:cut].isdigit() and len(text[:cut]) == cut:
            try:
                return datetime.strptime(text[:cut], form)
            except ValueError:
                continue
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        return None
