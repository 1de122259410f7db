"""`neuroflamingo report`: check all outputs first, then write each report as soon as it is done."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neuroflamingo.cli.errors import SOME_FAILED, say_error
from neuroflamingo.cli.outputs import Targets, check_targets, parse_formats, plan_targets
from neuroflamingo.inference.prompt import ReportPrompt, example_words
from neuroflamingo.model.tokens import IMAGE
from neuroflamingo.progress import Progress, say
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.files import printable, write_text_atomic
from neuroflamingo_preprocessing.user_files import check_input, decode_text

MAX_BYTES = 1_000_000
"""Largest file of an example's report; our own, as JSON, have some 50 kB."""

if TYPE_CHECKING:
    from neuroflamingo.cli.requests import ReportRequest
    from neuroflamingo.report.model import Report


def report_scans(request: ReportRequest, command: Sequence[str]) -> int:
    """Write one report for each group of scans that the prompt asks for, and return the exit code.

    For a single scan that fails, the exit code is that of its error; of several, the others are written and it is 1.
    """
    groups, prompt = groups_of(request)
    for scan in (
        scan for group in groups for scan in group
    ):  # before anything is loaded; the reader does all other checks
        check_input(scan)
    targets = plan_targets([group[-1] for group in groups], request.output, parse_formats(request.formats))
    check_targets(targets, overwrite=request.overwrite)
    shown = [parse_example(text) for text in request.examples or ()]
    with _stdout_kept_clean(targets[0].stdout) as write_out:
        from neuroflamingo.inference.loaded_model import model_folder
        from neuroflamingo.inference.pipeline import write_report
        from neuroflamingo.model.prompt_forms import check_prompt
        from neuroflamingo_preprocessing.preparation_options import Preparation

        opened = model_folder(request.model, **request.loading)
        options = Preparation.of(opened.scan_spec, **request.preparation, denoising=request.denoising)
        check_prompt(ReportPrompt.of(prompt, groups[0], shown).text, opened.prompts, force=options.force)
        if len(groups) > 1:  # a model that cannot be loaded then fails once, not with every scan
            with Progress(quiet=request.quiet) as progress:
                progress("loading the model")
                opened = opened.load()
        failures: list[NeuroFlamingoError] = []
        for group, target in zip(groups, targets, strict=True):
            try:
                with Progress(target.title, quiet=request.quiet) as progress:
                    report = write_report(
                        group if len(group) > 1 else group[0],
                        model=opened,
                        prompt=prompt,
                        examples=shown,
                        preparation=options,
                        seed=request.seed,
                        temperature=request.temperature,
                        max_new_tokens=request.max_new_tokens,
                        progress=progress,
                        pictures="html" in target.files,
                        command=command,
                    )
                    write_out(write_files(report, target, overwrite=request.overwrite))
            except NeuroFlamingoError as failure:
                if len(groups) == 1:
                    raise
                failures.append(failure)
                say_error(str(failure))
    if failures:
        say_error(f"{len(failures)} of {len(groups)} reports could not be written")
    return SOME_FAILED if failures else 0


def groups_of(request: ReportRequest) -> tuple[list[list[str]], str | None]:
    """Group the scans of each report, and give its prompt; see `group_scans`.

    Raises:
        UsageError: as `group_scans`, or `--baseline` with several scans or with a prompt of one's own.
    """
    if request.baseline is None:
        return group_scans(request.scans, request.prompt), request.prompt
    if len(request.scans) != 1 or request.prompt is not None:
        raise UsageError(
            "--baseline is for one report on one scan",
            expected=f"one scan, and no --prompt: it is {IMAGE * 2} then",
            seen=f"{len(request.scans)} scans" if request.prompt is None else f"--prompt {request.prompt}",
            hint="neuroflamingo report SCAN --baseline EARLIER_SCAN, once for each scan",
        )
    return [[request.baseline, *request.scans]], IMAGE * 2


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
    """Split `SCAN=REPORT.txt` into the scan's path and the report's text.

    Raises:
        UsageError: no `=` in it.
        NotFoundError: one of the files does not exist.
        ScanError: the file is not text, or far too long.
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
    if path.stat().st_size > MAX_BYTES:
        raise ScanError(
            f"{path.name} is not a report",
            expected=f"at most {MAX_BYTES // 1000} kB: the text of a report, or its JSON",
            seen=f"{path.stat().st_size:,} bytes",
            hint="give only the text of the report",
        )
    try:
        return Path(scan), example_words(decode_text(path.read_bytes()), path.name)
    except UnicodeDecodeError as error:
        raise ScanError(
            f"{path.name} is not a text file", expected="UTF-8", seen=str(error), hint="save it as UTF-8"
        ) from error


def write_files(report: Report, target: Targets, *, overwrite: bool) -> str:
    """Write the files of one report, the provenance last since it has the others' hashes; return the text to print."""
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
    """Provide a function that prints to standard output, and redirect all other output to standard error.

    This includes libraries that print from compiled code, because the file descriptor itself is redirected.
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
