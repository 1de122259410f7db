"""Progress: plain lines in a log, one live line on a terminal, nothing where quiet is asked for."""

from __future__ import annotations

import pytest

from neuroflamingo import progress as module
from neuroflamingo.progress import Progress
from neuroflamingo.training.run_progress import StageProgress


def test_plain_lines_without_a_terminal(capsys) -> None:
    with Progress("sub-01") as progress:
        progress("reading")
        progress("aligning")
        progress.count("scans", 1, 5)
        progress.count("scans", 2, 5)
    assert capsys.readouterr().err == "sub-01: reading\nsub-01: aligning\nsub-01: scans 1/5\n"


def test_quiet_says_nothing(capsys) -> None:
    with Progress(quiet=True, live=True) as progress:
        progress("reading")
        progress.count("scans", 1, 5)
    assert capsys.readouterr() == ("", "")


def test_live_line_closes_with_a_mark(capsys) -> None:
    with Progress("[red]", live=True) as progress:
        progress("reading")
    assert "✓" in capsys.readouterr().err
    with pytest.raises(ValueError), Progress(live=True) as progress:
        progress("reading")
        raise ValueError
    assert "✗" in capsys.readouterr().err


def test_a_log_has_the_first_and_the_last_count_and_one_each_half_minute(capsys, monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with Progress() as progress:
        for done in range(1, 9):
            progress.count("scans", done, 8, "slow")
            now += 20.0
    said = ["1/8, slow", "3/8, slow, 20.00 s each, 2 min left", "5/8, slow, 20.00 s each, 1 min left"]
    said += ["7/8, slow, 20.00 s each, 0 min left", "8/8, slow, 20.00 s each, 0 min left"]
    assert capsys.readouterr().err == "".join(f"scans {words}\n" for words in said)


def test_counts_and_notes_on_a_terminal(capsys) -> None:
    with Progress("sub-01", live=True) as progress:
        progress.count("scans", 1, 2)
        progress.note("[red] is a name")
        progress.count("scans", 2, 2)
    err = capsys.readouterr().err
    assert "sub-01: [red] is a name\n" in err and "✓ sub-01" in err.replace("\x1b[32m", "").replace("\x1b[0m", "")


def test_a_training_shows_its_smoothed_loss_and_validations(capsys) -> None:
    with StageProgress("mine", 3) as progress:
        progress.update(1, {"loss": 4.0, "gap": 1.0, "seconds": 3.0})
        progress.update(2, {"loss": 2.0})
        progress.validated(2, {"loss": 2.5})
        progress.update(3, {"loss": 3.0}, "9 scans/s")
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "mine: step 1/3, loss 4.000, gap 1.000"
    assert second == "mine: validation at step 2: loss 2.500"
    assert last.startswith("mine: step 3/3, loss 2.800, 9 scans/s, ")
