"""`write_report`: the pipeline from scans to a report: read, prepare, encode, generate, parse, trace, assemble."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

from neuroflamingo.findings.agreement import disagreements
from neuroflamingo.findings.comparison import parse_comparison
from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.inference.decode import write_text
from neuroflamingo.inference.loaded_model import LoadedModel, ModelFolder, model_folder
from neuroflamingo.inference.prompt import ReportPrompt, naming_example
from neuroflamingo.inference.scan_pairs import pair_warnings
from neuroflamingo.inference.second_look import UNLIKE
from neuroflamingo.model.prompt_forms import check_prompt
from neuroflamingo.provenance import (
    DeviceRecord,
    GenerationRecord,
    GeometryEntry,
    InputRecord,
    Provenance,
    QualityFlag,
    Stopwatch,
    command_line,
)
from neuroflamingo.report.assessment import assess, checks_of, kept_findings, stated_text
from neuroflamingo.report.methods import methods_of
from neuroflamingo.report.model import Report
from neuroflamingo.report.records import BANNER, ShownExample
from neuroflamingo.report.sections import parse_of, split_sections, statements_of
from neuroflamingo.report.tracing import draw, trace
from neuroflamingo_preprocessing.files import sha256_of_text
from neuroflamingo_preprocessing.formats.nifti.xform import checked_xform
from neuroflamingo_preprocessing.preparation import prepare
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.software import software, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from neuroflamingo.findings.agreement import Disagreement
    from neuroflamingo.findings.changes import Comparison
    from neuroflamingo.findings.parsing import ParsedReport
    from neuroflamingo.findings.vocabulary import Finding
    from neuroflamingo.report.records import GeneratedText, LikenessRecord, Statement
    from neuroflamingo_preprocessing.prepared_input import PreparedInput
    from neuroflamingo_preprocessing.spec import ScanSpec


@dataclass(frozen=True)
class ReportInput:
    """Prepared input of a report, and whether it belongs to an example."""

    prepared: PreparedInput
    is_example: bool

    @property
    def name(self) -> str:
        """Name of the input in the report."""
        return self.prepared.name


@dataclass(frozen=True)
class ReportInputs:
    """Everything that a report was written from.

    Attributes:
        taken: scans of the report.
        shown: scans of the examples.
        prompt: the text, with the examples' reports.
        forced: what the user insisted on about the prompt, for the top of the report.
        notes: warnings about the examples, and about scans that do not belong together.
    """

    taken: list[ReportInput]
    shown: list[ReportInput]
    prompt: ReportPrompt
    forced: str | None
    notes: tuple[str, ...]

    @property
    def examples(self) -> tuple[ShownExample, ...]:
        """The examples as the report shows them."""
        pairs = zip(self.shown, self.prompt.examples, strict=True)
        return tuple(ShownExample(name=item.name, report=words) for item, (_, words) in pairs)


def write_report(
    scan: Any,
    *,
    model: str | Path | ModelFolder | LoadedModel = "tiny-t1w",
    series: int | None = None,
    prompt: str | None = None,
    examples: Sequence[tuple[Any, str]] = (),
    xform: str = "auto",
    preparation: Preparation | None = None,
    seed: int = 0,
    device: str = "auto",
    temperature: float = 0.0,
    max_new_tokens: int = 400,
    title: str | None = None,
    pictures: bool = True,
    command: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Write a report on a scan.

    Args:
        scan: any input that the model's encoder takes, see `neuroflamingo_preprocessing.prepare`: a volume or run
            (NIfTI, MGH, DICOM), a parcel table, a stack of slices, a sequence, a prepared array, a `Scan`; a list of
            them for a prompt with as many `<image>`. Of a run with several windows the first is used.
        model: name of an embedded model, a folder, or the result of `open_model` (to load once for many scans)
            or of `model_folder`, which is loaded after the scan is prepared.
        series: number of a DICOM series; None: the only T1-weighted volume.
        prompt: text with one `<image>` per scan; None is `<image>` alone.
        examples: pairs of a scan and its report, shown before the prompt. Of a report of ours (text or JSON) the words
            are taken.
        xform: `auto`, `sform` or `qform`: the affine of a scan's header to use (not of the examples').
        preparation: further options for preparing the scans: atlas, repetition time, denoising; `force`: use scans and
            prompts that the model is not made for (also of the examples).
        seed: random seed for sampling.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; ignored if `model` determines it.
        temperature: 0: greedy decoding; above 0: sampling.
        max_new_tokens: maximum length of the text in tokens.
        title: title of the report; None: the file's name.
        pictures: whether to draw the pictures of the page.
        command: argument vector for the provenance; None: this function's name.
        progress: called with the name of each stage as it starts.

    Raises:
        UsageError: the numbers of `<image>` and scans differ, or an example's text contains special tokens.
        NotFoundError, ScanError: a scan cannot be read or prepared; an example's report is no report.
        ModelError: the model is unknown, does not fit, or was not trained for such a prompt.

    Example:
        >>> from neuroflamingo import write_report
        >>> from neuroflamingo.painting import paint_case
        >>> report = write_report(paint_case(11).scan(), pictures=False, max_new_tokens=8)
        >>> report.text.startswith("TECHNIQUE")
        True
    """
    checked_xform(xform)
    clock, tell = Stopwatch(), progress or (lambda stage: None)
    scans = list(scan) if isinstance(scan, list | tuple) else [scan]
    asked = ReportPrompt.of(prompt, scans, examples)
    known = model if isinstance(model, LoadedModel | ModelFolder) else model_folder(model, device=device)
    options = replace(preparation or Preparation(), **_given(series=series, xform=xform))
    forced = check_prompt(asked.text, known.prompts, force=options.force)
    notes = asked.check_examples(force=options.force or known.prompts is None)
    taken = [_prepare(source, known.scan_spec, options, clock, tell, example=False) for source in scans]
    shown = []
    for number, (source, _) in enumerate(asked.examples, start=1):
        with naming_example(number, source):
            alike = Preparation(force=options.force)
            shown.append(_prepare(source, known.scan_spec, alike, clock, tell, example=True))
    prepared = [[item.prepared for item in items] for items in (taken, shown)]
    notes += pair_warnings(scans, *prepared, series=options.series)
    if not isinstance(known, LoadedModel):  # so late, because a scan that fails should not wait for it
        tell("loading the model")
        with clock.stage("load model"):
            known = known.load()
    tell("writing")
    with clock.stage("encode and generate"):
        written = write_text(
            known,
            asked.text,
            [*prepared[1], *prepared[0]],
            report_scans=len(taken),
            seed=seed,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
        )
    tell("tracing and drawing")
    settings = GenerationRecord(
        strategy="sampling" if temperature > 0 else "greedy",
        seed=seed,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        new_tokens=written.new_tokens,
        stopped="end of report" if written.ended else "token limit",
        prompt=asked.asked,
        prompt_sha256=sha256_of_text(asked.text),
        examples=len(asked.examples),
    )
    vector = command_line(command if command is not None else ["neuroflamingo.write_report"])
    inputs = ReportInputs(taken, shown, asked, forced, notes)
    return _assemble(inputs, known, written, settings, title, pictures, vector, clock)


def _prepare(
    source: Any, spec: ScanSpec, options: Preparation, clock: Stopwatch, tell: Callable[[str], None], example: bool
) -> ReportInput:
    tell("reading and aligning" + (" an example" if example else ""))
    with clock.stage("read and prepare"):
        return ReportInput(prepare(source, spec, options), example)


def _assemble(
    inputs: ReportInputs,
    model: LoadedModel,
    written: GeneratedText,
    settings: GenerationRecord,
    title: str | None,
    pictures: bool,
    command: tuple[str, ...],
    clock: Stopwatch,
) -> Report:
    taken, shown = inputs.taken, inputs.shown
    with clock.stage("trace and draw"):
        parsed = parse_report(written.text)
        views = [item.prepared.view for item in taken]
        statements, traces = trace(statements_of(parsed), written, views)
        points = disagreements(parsed)
        comparison, odd = _compare(written.text, len(taken))
        judged = model.second_look.judge(model.model.encoder, _tokens(written, comparison), parsed.findings)
        statements, assessments = assess(statements, parsed, points, written.mirrored, judged)
        likeness = model.second_look.compare(written.tokens)
        drawn = draw(views, traces, written, [item.prepared.view for item in shown]) if pictures else ()
    warnings = (*inputs.notes, *_warnings(taken, written, points), *odd)
    provenance = Provenance(
        run_uuid=clock.run_uuid,
        started=clock.started,
        finished=utc_now(),
        command=command,
        software=software(),
        inputs=_inputs(inputs),
        geometry=_geometry([*taken, *shown]),
        model=model.record,
        generation=settings,
        device=_device(model),
        timing=clock.seconds,
        peak_memory_mb=clock.peak_mb,
        qc=(*_checks(taken, parsed, points), *checks_of(statements, assessments), *_likeness_check(likeness)),
        warnings=warnings,
    )
    return Report(
        banner=_banner(inputs, likeness),
        title=title or ", then ".join(_title(item.name) for item in taken),
        text=written.text,
        sections=split_sections(written.text),
        findings=kept_findings(parsed.findings, [one.verdict for one in judged]),
        impression_findings=_concluded(statements),
        comparison=comparison,
        statements=statements,
        assessments=assessments,
        mirrored_text=written.mirrored,
        stated_text=stated_text(written.text, statements),
        likeness=likeness,
        model_card=model.about,
        examples=inputs.examples,
        parse=parse_of(parsed, points),
        methods=methods_of(provenance, model.citations),
        warnings=warnings,
        provenance=provenance,
        pictures=drawn,
    )


def _banner(inputs: ReportInputs, likeness: LikenessRecord | None) -> str:
    """What stands at the top of page, text and JSON."""
    unlike = [UNLIKE] if likeness is not None and likeness.unlike else []
    forced = [inputs.forced] if inputs.forced else []
    scans = (words for item in (*inputs.taken, *inputs.shown) for words in item.prepared.forced)
    return " ".join([BANNER, *unlike, *forced, *scans])


def _compare(text: str, scans: int) -> tuple[Comparison | None, tuple[str, ...]]:
    """What a text about several scans says has changed, and warnings; None if it does not compare, or has one scan."""
    read = parse_comparison(text)
    if scans < 2 or not read.stated:
        return None, ()
    odd = [f"the text disagrees with itself: {words}" for words in read.contradictions]
    odd += [f"not understood in COMPARISON: {words}" for words in read.unparsed]
    return read.comparison, tuple(odd)


def _tokens(written: GeneratedText, comparison: Comparison | None) -> Any:
    """The encoder's tokens of what FINDINGS are about: the follow-up alone, where the report compares."""
    return written.tokens if comparison is None or written.tokens is None else written.tokens[-1:]


def _concluded(statements: Sequence[Statement]) -> tuple[Finding, ...]:
    """Findings of IMPRESSION, those withheld left out."""
    concluded = [one for one in statements if one.section == "impression"]
    return tuple(f for one in concluded for f in kept_findings(one.findings, repeat(one.verdict)))


def _likeness_check(likeness: LikenessRecord | None) -> tuple[QualityFlag, ...]:
    if likeness is None:
        return ()
    limit = f"at most {likeness.threshold:g}"
    name = "distance from the heads that the model knows"
    return (QualityFlag(name=name, value=likeness.score, threshold=limit, passed=not likeness.unlike),)


def _title(name: str) -> str:
    lower = name.lower()
    ending = next((ending for ending in (".nii.gz", ".nii") if lower.endswith(ending)), "")
    return name[: len(name) - len(ending)] or name


def _inputs(inputs: ReportInputs) -> tuple[InputRecord, ...]:
    records = []
    for item in (*inputs.taken, *inputs.shown):
        source = item.prepared.provenance
        records.append(
            InputRecord(
                name=item.name,
                role="example scan" if item.is_example else "scan",
                sha256=source.sha256,
                header_sha256=source.header_sha256,
                spacing_mm=tuple(round(size, 4) for size in item.prepared.spacing),
                header=source.header,
            )
        )
    for number, (_, body) in enumerate(inputs.prompt.examples, start=1):
        records.append(
            InputRecord(
                name=f"example report {number}",
                role="example report",
                size_bytes=len(body.encode()),
                sha256=sha256_of_text(body),
            )
        )
    return tuple(records)


def _geometry(items: list[ReportInput]) -> tuple[GeometryEntry, ...]:
    return tuple(
        GeometryEntry(scan=number, **step.as_dict())
        for number, item in enumerate(items)
        for step in item.prepared.geometry
    )


def _warnings(taken: list[ReportInput], written: GeneratedText, points: Sequence[Disagreement]) -> tuple[str, ...]:
    found = [
        f"{item.name}: {warning}" if len(taken) > 1 else warning
        for item in taken
        for warning in (*item.prepared.warnings, *_windows_left(item.prepared))
    ]
    if not written.text.strip():
        found.append("the model wrote no text: this is no report")
    if not written.ended:
        found.append("the text reached the token limit, so its end is missing")
    found += [f"the text disagrees with itself: {point.words}" for point in points]
    return tuple(found)


def _windows_left(prepared: PreparedInput) -> list[str]:
    """Warn that a model reads only one window of a run."""
    if len(prepared.windows) == 1:
        return []
    frames = prepared.windows[0].metadata["window"]["frames"]
    return [f"the model reads {frames} frames at a time: the first of {len(prepared.windows)} windows was read"]


def _checks(taken: list[ReportInput], parsed: ParsedReport, points: Sequence[Disagreement]) -> tuple[QualityFlag, ...]:
    checks = []
    for item in taken:
        of = f" of {item.name}" if len(taken) > 1 else ""
        for check in item.prepared.checks:
            name = f"{check.subject}{of}" + (f": {check.measure}" if check.measure else "")
            checks.append(_at_least(name, check.value, check.at_least))
    checks.append(_at_least("share of sentences understood", parsed.coverage, 0.9))
    if parsed.has_impression:
        checks.append(_at_least("findings and impression agree", float(parsed.agrees and not points), 1.0))
    return tuple(checks)


def _given(**values: Any) -> dict[str, Any]:
    """Select the options that differ from their defaults."""
    return {key: value for key, value in values.items() if value not in (None, "auto")}


def _at_least(name: str, value: float, threshold: float) -> QualityFlag:
    return QualityFlag(
        name=name, value=round(float(value), 4), threshold=f"at least {threshold:g}", passed=bool(value >= threshold)
    )


def _device(model: LoadedModel) -> DeviceRecord:
    import torch

    return DeviceRecord(
        name=model.device,
        dtype=model.dtype,
        threads=torch.get_num_threads() if model.device == "cpu" else None,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
