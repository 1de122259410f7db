"""A model as a command line: it takes the name of a scan's file and prints the report."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from neuroflamingo.report.report_words import report_words
from neuroflamingo_preprocessing.errors import ModelError, ScanError, UsageError

SCAN, TARGET = "{scan}", "{reference}"
MAX_TEXT, MAX_SEEN = 2**20, 500
"""Most bytes of a report, and most characters of an error output that a message repeats."""


@dataclass(frozen=True)
class ScanCommand:
    """A command that writes the report on a scan to its standard output. No shell is started.

    Attributes:
        words: program and arguments; `{scan}` stands for the scan's file, `{reference}` for one with the true report.
        timeout_s: seconds after which it is stopped.
    """

    words: tuple[str, ...]
    timeout_s: float = 600.0

    @classmethod
    def of(cls, line: str, timeout_s: float = 600.0) -> ScanCommand:
        """From a line such as `my-model --input {scan}`, quoted as for a shell.

        Raises:
            UsageError: it cannot be split into words, or `{scan}` is not in it.
        """
        try:
            words = tuple(shlex.split(line))
        except ValueError as error:
            raise UsageError(
                "the command cannot be split into words", seen=str(error), hint="check its quotes"
            ) from error
        if not any(SCAN in word for word in words):
            raise UsageError(
                "the command does not say where the scan goes",
                expected=f"a command with {SCAN} in it",
                seen=line[:MAX_SEEN] or "nothing",
                hint=f"--command 'my-model --input {SCAN}'",
            )
        return cls(words, timeout_s)

    @property
    def takes_target(self) -> bool:
        """Whether it is given the true report too."""
        return any(TARGET in word for word in self.words)

    def __call__(self, scan: Path, target: str = "") -> str:
        """Run it on a scan.

        Raises:
            ModelError: there is no such program (exit 66).
            ScanError: it fails, takes too long, or prints no text: it has no report on this scan.
        """
        with tempfile.TemporaryDirectory(prefix="audit-") as folder:
            given = Path(folder) / "reference.txt"
            if self.takes_target:
                given.write_text(target, encoding="utf-8")
            words = [word.replace(SCAN, os.path.abspath(scan)).replace(TARGET, str(given)) for word in self.words]
            return report_words(self._run(words, Path(folder)))

    def _run(self, words: list[str], folder: Path) -> str:
        out, err = folder / "out", folder / "err"
        with out.open("wb") as stream, err.open("wb") as complaints:
            try:
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=stream, stderr=complaints, start_new_session=True
                )
            except OSError as error:
                raise ModelError(
                    f"the command {words[0]} cannot be started", seen=error.strerror or str(error), exit_code=66
                ) from error
            try:
                code = process.wait(timeout=self.timeout_s)
            except subprocess.TimeoutExpired as error:
                raise ScanError(f"no report after {self.timeout_s:g} s", hint="--timeout SECONDS") from error
            finally:
                with contextlib.suppress(ProcessLookupError):  # it may have left children behind
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code:
            lines = err.read_bytes()[-4 * MAX_SEEN :].decode("utf-8", errors="replace").strip()
            raise ScanError(f"the command ended with code {code}", seen=lines[-MAX_SEEN:] or None)
        with out.open("rb") as stream:
            text = stream.read(MAX_TEXT).decode("utf-8", errors="replace").strip()
        if not text:
            raise ScanError("the command printed nothing", expected="the report on standard output")
        return text
