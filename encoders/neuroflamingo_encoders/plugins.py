"""`survey`: the cards of all encoders; a plug-in that raises, prints, hangs or claims a taken name is reported."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuroflamingo_encoders.registry import encoder_card, is_plug_in, list_encoders
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard

SECONDS = 30.0
"""Seconds that a plug-in may take to give its card; importing torch alone may take ten."""


@dataclass(frozen=True)
class Entry:
    """Card of an encoder, or the reason why there is none.

    Attributes:
        name: one of `list_encoders`.
        card: the card; None if it cannot be read.
        fault: the error, if there is no card.
        remark: a warning, for instance about output on import.
    """

    name: str
    card: EncoderCard | None = None
    fault: NeuroFlamingoError | None = None
    remark: str = ""


def survey(seconds: float = SECONDS) -> Iterator[Entry]:
    """Yield the card of every encoder or its fault, sorted by name; plug-ins get `seconds` each."""
    for name in list_encoders():
        yield _ask_with_care(name, seconds) if is_plug_in(name) else _ask(name)


def _ask(name: str) -> Entry:
    try:
        return Entry(name, encoder_card(name))
    except NeuroFlamingoError as fault:
        return Entry(name, fault=fault)


def _ask_with_care(name: str, seconds: float) -> Entry:
    """Read a plug-in's card in a thread with a time limit: an import cannot be interrupted.

    A thread that hangs is abandoned; as a daemon it ends with the program.
    """
    answers: list[Entry] = []

    def ask() -> None:
        try:
            answers.append(_ask(name))
        except BaseException as error:
            answers.append(Entry(name, fault=_fault(name, f"{type(error).__name__}: {error}")))

    printed = io.StringIO()
    thread = threading.Thread(target=ask, daemon=True, name=f"card of {name}")
    with contextlib.redirect_stdout(printed):
        thread.start()
        thread.join(seconds)
    if not answers:
        return Entry(name, fault=_fault(name, f"no card after {seconds:g} s"))
    if output := printed.getvalue().strip():
        remark = f"prints to standard output when it is imported: {output.splitlines()[0]!r}"
        return Entry(name, answers[0].card, answers[0].fault, remark)
    return answers[0]


def _fault(name: str, seen: str) -> ModelError:
    return ModelError(
        f"the encoder '{name}' does not return its card",
        expected="an EncoderCard, at once",
        seen=seen,
        hint="uninstall the plug-in, or report it to its author",
        exit_code=78,
    )
