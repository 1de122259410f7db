"""Errors of the parser of the command line, in the words and the shape of all other errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from neuroflamingo.progress import visible
from neuroflamingo_preprocessing.errors import UsageError, did_you_mean

PROGRAM = "neuroflamingo"
GROUPS = ("encoders", "models", "data")
_SHOULD = "Input should be "


def is_parser_error(failure: BaseException) -> bool:
    """Whether the parser raised it: typer's releases bring different classes, from click or their own copy of it."""
    return callable(getattr(failure, "format_message", None)) and hasattr(failure, "exit_code")


def in_our_words(failure: Any, words: Sequence[str]) -> UsageError | SystemExit:
    """The parser's error as one of ours: what, expected, seen, and one thing to try; of a bare group, its help.

    Args:
        failure: see `is_parser_error`.
        words: the command line, without the name of the program.
    """
    if type(failure).__name__ == "NoArgsIsHelpError":
        failure.show()
        return SystemExit(failure.exit_code)
    context = getattr(failure, "ctx", None)
    verb = context.command_path if context is not None else _verb(words)
    parameters = list(getattr(getattr(context, "command", None), "params", ()))
    help_hint = f"{verb} --help"
    name = getattr(failure, "option_name", None)
    if type(failure).__name__ == "NoSuchOption":
        return _no_such_option(_shown(str(name)), verb, parameters)
    parameter = getattr(failure, "param", None)
    if parameter is not None and type(failure).__name__ == "MissingParameter":
        return UsageError(
            f"{_name(parameter)} is missing", expected=_meaning(parameter), seen="nothing", hint=help_hint
        )
    if parameter is not None:
        return UsageError(
            f"{_name(parameter)} has a value that it cannot have",
            expected=_first_lower(visible(str(failure.message)).removeprefix(_SHOULD)).partition(", unable")[0],
            seen=_shown(_given(parameter.opts, words) or "another value"),
            hint=help_hint,
        )
    if name is not None:
        lacks = "requires" in str(failure.message)
        return UsageError(
            f"{visible(str(name))} {'needs a value' if lacks else 'takes no value'}",
            expected="its value behind it" if lacks else "the option alone",
            seen="nothing" if lacks else _shown(_given((name,), words) or "a value"),
            hint=help_hint,
        )
    usage = context.command.get_usage(context) if context is not None else ""
    return UsageError(
        _first_lower(_shown(str(failure.format_message()).rstrip("."))),
        expected=" ".join(usage.split()[1:]) or None,
        seen=_shown(" ".join((PROGRAM, *words))),
        hint=help_hint,
    )


def no_such_command(name: str, verb: str, known: Iterable[str]) -> UsageError:
    """The error for a command that does not exist.

    Args:
        name: as it was given.
        verb: the program, or the group of commands.
        known: the commands that there are.
    """
    names = sorted(known)
    return UsageError(
        f"{verb} has no command {_shown(name)}",
        expected=f"one of: {', '.join(names)}",
        seen=_shown(name),
        hint=did_you_mean(name, names) or f"{verb} --help",
    )


def _no_such_option(name: str, verb: str, parameters: list[Any]) -> UsageError:
    options = [word for one in parameters for word in (*one.opts, *one.secondary_opts) if word.startswith("-")]
    near = did_you_mean(name, [word for word in options if word.startswith("--")], cutoff=0.6)
    return UsageError(
        f"{verb} has no option {name}",
        expected=f"an option of {verb} --help",
        seen=name,
        hint=near or f"{verb} --help; a file whose name begins with - comes after --",
    )


def _verb(words: Sequence[str]) -> str:
    """The command that the words begin with."""
    names = list(takewhile(lambda word: word.isidentifier() or word.replace("-", "").isalpha(), words))
    return " ".join((PROGRAM, *names[: 2 if names[:1] and names[0] in GROUPS else 1]))


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "option":
        return max(parameter.opts, key=len)
    return str(parameter.metavar or parameter.name.upper())


def _meaning(parameter: Any) -> str:
    return _first_lower(str(getattr(parameter, "help", None) or "a value").rstrip("."))


def _shown(text: str) -> str:
    """What a user wrote, on one line and at most 200 characters of it."""
    return visible(text if len(text) <= 200 else f"{text[:200]}...")


def _given(names: Sequence[str], words: Sequence[str]) -> str | None:
    """The value that an option was given; the last one if it may be given several times."""
    found = None
    for word, after in zip(words, (*words[1:], ""), strict=True):
        option, equals, value = word.partition("=")
        if option in names:
            found = value if equals else after
    return found


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:]
