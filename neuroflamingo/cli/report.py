"""`neuroflamingo report`: outputs are settled first, then each report is written as soon as it is done."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.cli.errors import SOME_FAILED, say_error
from neuroflamingo.cli.outputs import Targets, check_targets, parse_formats, plan_targets
from neuroflamingo.model.tokens import IMAGE
from neuroflamingo.progress import Progress, say
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.files import printable, write_text_atomic
from neuroflamingo_preprocessing.user_files import check_input, decode_text

if TYPE_CHECKING:
    from neuroflamingo.report.model import Report


def report_scans(
    scans: Sequence[str],
    *,
    output: str | None,
    formats: str | None,
    model: str,
    prompt: str | None,
    examples: Sequence[str],
    preparation: Mapping[str, Any],
    loading: Mapping[str, Any],
    seed: int,
    temperature: float,
    max_new_tokens: int,
    overwrite: bool,
    quiet: bool,
    command: Sequence[str],
) -> int:
    """Write one report for each group of scans that the prompt asks for, and give the exit code.

    A scan that fails on its own gives its error's code; of several, those that can be written are, and the code is 1.
    """
    groups = group_scans(scans, prompt)
    for scan in scans:  # before anything is loaded; everything else is the reader's to judge
        check_input(scan)
    targets = plan_targets([group[0] for group in groups], output, parse_formats(formats))
    check_targets(targets, overwrite=overwrite)
    shown = [parse_example(text) for text in examples]
    with _stdout_kept_clean(targets[0].stdout) as write_out:
        from neuroflamingo.inference.loaded_model import model_folder
        from neuroflamingo.inference.pipeline import write_report
        from neuroflamingo_preprocessing.preparation_options import Preparation

        opened = model_folder(model, **loading)
        options = Preparation.of(opened.scan_spec, **preparation)
        if len(groups) > 1:  # a model that cannot be loaded then fails once, not with every scan
            with Progress(quiet=quiet) as progress:
                progress("loading the model")
                opened = opened.load()
        failures: list[NeuroFlamingoError] = []
        for group, target in zip(groups, targets, strict=True):
            try:
                with Progress(target.title, quiet=quiet) as progress:
                    report = write_report(
                        group if len(group) > 1 else group[0],
                        model=opened,
                        prompt=prompt,
                        examples=shown,
                        preparation=options,
                        seed=seed,
                        temperature=temperature,
                        max_new_tokens=max_new_tokens,
                        progress=progress,
                        pictures="html" in target.files,
                        command=command,
                    )
                    write_out(write_files(report, target, overwrite=overwrite))
            except NeuroFlamingoError as failure:
                if len(groups) == 1:
                    raise
                failures.append(failure)
                say_error(str(failure))
    if failures:
        say_error(f"{len(failures)} of {len(groups)} reports could not be written")
    return SOME_FAILED if failures else 0


def group_scans(scans: Sequence[str], prompt: str | None) -> list[list[str]]:
    """The scans of each report: one each, or all of them for a prompt with several `<image>`.

    Raises:
        UsageError: the prompt has no `<image>`, or not as many as there are scans.
    """
    wanted = 1 if prompt is None else prompt.count(IMAGE)
    if wanted == 1:
        return [[scan] for scan in scans]
    if wanted == len(scans):
        return [list(scans)]
    raise UsageError(
        f"the prompt has {wanted} {IMAGE}",
        expected=f"one {IMAGE} (a report for each scan), or {len(scans)} for these scans in one report",
        seen=str(prompt),
        hint=f'--prompt "{IMAGE * len(scans)}"',
    )


def parse_example(text: str) -> tuple[Path, str]:
    """`SCAN=REPORT.txt` as the scan's path and the report's text.

    Raises:
        UsageError: no `=` in it.
        NotFoundError: one of the files does not exist.
        ScanError: the text file is no text, or longer than 100 kB.
    """
    scan, equals, report = text.rpartition("=")
    if not equals or not scan or not report:
        raise UsageError(
            f"--example {text} is not a pair",
            expected="SCAN.nii.gz=REPORT.txt",
            hint="--example scan.nii.gz=report.txt",
        )
    check_input(scan)
    path = Path(report)
    if not path.is_file():
        raise NotFoundError(f"there is no example report {report}", expected="a text file", hint="check the path")
    if path.stat().st_size > 100_000:
        raise ScanError(
            f"{path.name} is no report", expected="at most 100 kB of text", seen=f"{path.stat().st_size} bytes"
        )
    try:
        return Path(scan), decode_text(path.read_bytes()).strip()
    except UnicodeDecodeError as error:
        raise ScanError(
            f"{path.name} is no text", expected="UTF-8", seen=str(error), hint="save it as UTF-8"
        ) from error


def write_files(report: Report, target: Targets, *, overwrite: bool) -> str:
    """Write the files of one report, the provenance last because it names the others' hashes; gives what to print."""
    if target.stdout:
        return report.to_json()
    from neuroflamingo.provenance import OutputRecord
    from neuroflamingo_preprocessing.files import sha256_of_text

    forms = {"html": report.to_html, "json": report.to_json, "txt": report.to_text}
    written: list[OutputRecord] = []
    for kind, path in target.files.items():
        if kind != "prov":
            text = forms[kind]()
            write_text_atomic(path, text, overwrite=overwrite)
            written.append(OutputRecord(name=printable(path.name), sha256=sha256_of_text(text)))
    if "prov" in target.files:
        provenance = report.provenance.model_copy(update={"outputs": tuple(written)})
        write_text_atomic(target.files["prov"], provenance.model_dump_json(indent=2) + "\n", overwrite=overwrite)
    return "".join(f"{path}\n" for path in target.files.values())


@contextlib.contextmanager
def _stdout_kept_clean(wanted: bool) -> Iterator:
    """Give a function that prints to standard output; while it is open all other printing goes to standard error.

    Libraries that print from compiled code are caught too, because the file descriptor itself is turned.
    """
    if not wanted:
        yield lambda text: say(text, end="", flush=True)
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(kept, "w", encoding="utf-8", errors="replace", closefd=False) as out:

            def write(text: str) -> None:
                out.write(text)
                out.flush()

            yield write
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
