"""BIDS datasets by rule: trees of empty files, for tests and hypothesis."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from neuroflamingo_preprocessing.spec import Axis, ScanSpec

AXES: Any = tuple(Axis(name=name, size=4) for name in ("channel", "x", "y", "z"))
T1W = ScanSpec(modality="volume3d", axes=(Axis(name="channel", size=1), *AXES[1:]), channels=("T1w",))
BOLD = ScanSpec(
    modality="volume4d",
    axes=(*AXES, Axis(name="time", size=20)),
    spacing_mm=(2.0, 2.0, 2.0),
    origin_mm=(0.0, 0.0, 0.0),
    template="MNI152 6th generation",
)
SUBJECT = st.from_regex(r"[A-Za-z0-9]{1,6}", fullmatch=True)
LABEL = st.from_regex(r"[A-Za-z0-9]{1,5}", fullmatch=True)


def plant(root: Path, files: Iterable[str], sidecars: Mapping[str, Any] | None = None) -> Path:
    """A dataset of empty files, and of sidecars with what they say."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text('{"Name": "by rule", "BIDSVersion": "1.10.0"}')
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    for file, said in (sidecars or {}).items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(said if isinstance(said, str) else json.dumps(said))
    return root


@st.composite
def datasets(draw: st.DrawFn) -> tuple[set[str], set[str], set[str]]:
    """Heads, runs and everything else of a dataset, as paths below its root; labels that differ by more than case."""
    heads, runs, others = set(), set(), set()
    for subject in draw(st.lists(SUBJECT, min_size=1, max_size=4, unique_by=str.lower)):
        for session in draw(st.lists(LABEL, max_size=2, unique_by=str.lower)) or [None]:
            folder = f"sub-{subject}" + (f"/ses-{session}" if session else "")
            begin = f"sub-{subject}" + (f"_ses-{session}" if session else "")
            for acquisition in draw(st.lists(LABEL, max_size=2, unique_by=str.lower)) or [None]:
                acq = f"_acq-{acquisition}" if acquisition else ""
                heads.add(f"{folder}/anat/{begin}{acq}_T1w{draw(st.sampled_from(['.nii', '.nii.gz']))}")
            for task in draw(st.lists(LABEL, max_size=2, unique_by=str.lower)):
                width = draw(st.integers(1, 3))
                for number in draw(st.lists(st.integers(1, 12), max_size=2, unique=True)) or [None]:
                    run = f"_run-{number:0{width}}" if number else ""
                    runs.add(f"{folder}/func/{begin}_task-{task}{run}_bold.nii.gz")
                    others |= {
                        f"{folder}/func/{begin}_task-{task}{run}_{end}" for end in ("sbref.nii.gz", "events.tsv")
                    }
            others |= {f"{folder}/anat/{begin}_T2w.nii.gz", f"{folder}/anat/{begin}_T1w.json"}
            others |= {f"{top}/{file}" for top in ("derivatives/x", "sourcedata", "code") for file in list(heads)[:1]}
            others |= {f"{folder}/anat/._{begin}_T1w.nii.gz", f"{folder}/.heudiconv/{begin}_T1w.nii.gz"}
    return heads, runs, others
