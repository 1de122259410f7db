"""Errors of the command line's parser have the shape of all others, and nothing in a word steers the terminal."""

from __future__ import annotations

import unicodedata

import pytest

from neuroflamingo.cli import main
from neuroflamingo.cli.app import application

BAD = [
    (["train"], "CONFIG.yaml is missing", "nothing", "neuroflamingo train --help"),
    (["encode", "x"], "--encoder is missing", "nothing", "neuroflamingo encode --help"),
    (["encoders", "card"], "NAME is missing", "nothing", "neuroflamingo encoders card --help"),
    (["report", "--modle", "x"], "neuroflamingo report has no option --modle", "--modle", "--model"),
    (["report", "x", "--quite"], "neuroflamingo report has no option --quite", "--quite", "did you mean --quiet"),
    (["report", "-Z", "x"], "neuroflamingo report has no option -Z", "-Z", "comes after --"),
    (["--bogus"], "neuroflamingo has no option --bogus", "--bogus", "neuroflamingo --help"),
    (["reprot", "x"], "neuroflamingo has no command reprot", "reprot", "did you mean report"),
    (["bogus"], "neuroflamingo has no command bogus", "bogus", "neuroflamingo --help"),
    (["encoders", "chek"], "neuroflamingo encoders has no command chek", "chek", "did you mean check?"),
    (["report", "--model"], "--model needs a value", "nothing", "neuroflamingo report --help"),
    (["report", "x", "--quiet=1"], "--quiet takes no value", "1", "neuroflamingo report --help"),
    (["report", "x", "--seed", "a"], "--seed has a value", "a", "neuroflamingo report --help"),
    (["report", "x", "--seed=a"], "--seed has a value", "a", "neuroflamingo report --help"),
    (["evaluate", "--cases", "1"], "--cases has a value", "1", "neuroflamingo evaluate --help"),
    (["report", "x", "--temperature", "nan?"], "--temperature has a value", "nan?", "neuroflamingo report --help"),
    (["train", "a", "b", "c"], "got unexpected extra argument(s) (b c)", "neuroflamingo train a b c", "train --help"),
]


@pytest.mark.parametrize(("words", "what", "seen", "hint"), BAD, ids=lambda value: " ".join(value)[:30])
def test_what_expected_seen_and_try(
    words: list[str], what: str, seen: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out and len(lines) == 4
    assert lines[0].startswith(f"error: {what}") and lines[1].startswith("  expected: ")
    assert lines[2] == f"  seen: {seen}" and lines[3].startswith("  try: ") and hint in lines[3]


NASTY = "b\x1b[31mo\x07o\u202e\nerror: all is well\r"


@pytest.mark.parametrize(
    "words",
    [
        [NASTY],
        ["encoders", NASTY],
        ["--" + NASTY],
        ["report", "--" + NASTY],
        ["report", f"--{NASTY}=1"],
        ["report", "x", "--seed", NASTY],
        ["report", "x", f"--quiet={NASTY}"],
        ["train", "x", NASTY],
        ["report", "x" * 5000, "--seed", "y" * 5000],
        ["--" + "y" * 5000],
    ],
)
def test_no_word_of_the_command_line_steers_the_terminal(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert len(err) < 2000 and err.count("\n") == 4
    assert {unicodedata.category(character) for character in err.replace("\n", "")}.isdisjoint({"Cc", "Cf", "Cs"})


def test_help_and_bare_groups_are_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0 and "Usage: neuroflamingo" in capsys.readouterr().out
    assert main(["report", "-h"]) == 0 and "Usage: neuroflamingo report" in capsys.readouterr().out
    assert main([]) == 2 and "Usage: neuroflamingo" in capsys.readouterr().err
    assert main(["models"]) == 2 and "Usage: neuroflamingo models" in capsys.readouterr().err


def test_a_command_that_ends_itself_keeps_its_code() -> None:
    assert application(args=["--version"], standalone_mode=False) == 0
