"""The base of every config section, the check of values against it, and the refusal of code in data."""

from __future__ import annotations

from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from neuroflamingo_preprocessing.errors import ConfigError, ModelError, nearest
from neuroflamingo_preprocessing.files import read_json

# Keys by which a config or tokenizer file asks for code that lies beside it to be imported and run.
REMOTE_CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "trust_remote_code", "custom_generate", "code_revision"})

MAX_FAULTS, MAX_QUOTED = 20, 200
"""Most faults of one message, and most characters of a value in it."""
MAX_MODEL_JSON = 2**28
"""Largest file of a model, other than weights, that is read, in bytes."""


class Section(BaseModel):
    """A frozen section of a config or recipe; unknown keys, infinite numbers and NaN are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _words_that_yaml_takes_for_true(cls, values: Any) -> Any:
        """Where a choice has the words on or off, YAML's true and false are these."""
        if not isinstance(values, dict):
            return values
        out = dict(cast("dict[str, Any]", values))
        for key, value in out.items():
            word = "on" if value is True else "off" if value is False else None
            if word and key in cls.model_fields and word in _accepted(cls.model_fields[key].annotation):
                out[key] = word
        return out


def _plain_name(name: str) -> str:
    """Refuse a name that would lead out of the folder in which something is to have it."""
    if name.startswith(".") or set(name) & set("/\\") or not name.isprintable() or not 0 < len(name) <= 100:
        raise ValueError(f"must be a plain name of at most 100 characters, without slashes (seen: {name!r:.60})")
    return name


PlainName = Annotated[str, AfterValidator(_plain_name)]
"""A name that a folder or a file is to have."""
SettingsT = TypeVar("SettingsT", bound=BaseModel)


def check_settings(kind: type[SettingsT], values: dict[str, Any], where: str) -> SettingsT:
    """Validate settings.

    Raises:
        ConfigError: all faults in one message, unknown keys with the nearest spelling.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults = faults_in_words(kind, error)
        count = error.error_count()
        what = f"{where} has {count} fault{'s' * (count > 1)}"
        raise ConfigError(what, seen="\n    ".join(faults), hint="correct or remove these keys") from error


def faults_in_words(kind: type[BaseModel], error: ValidationError, *, private: bool = False) -> list[str]:
    """Describe the fault of each key; for `private` data without quoting them, except the name of a choice."""
    shown = error.errors(include_url=False)[:MAX_FAULTS]
    more = [f"and {error.error_count() - MAX_FAULTS} more"] if error.error_count() > MAX_FAULTS else []
    return [_fault(kind, fault, private) for fault in shown] + more


def _fault(kind: type[BaseModel], fault: Any, private: bool) -> str:
    where = f"{_short('.'.join(map(str, fault['loc'])))}: " if fault["loc"] else ""
    if fault["type"] == "extra_forbidden":
        *parents, key = map(str, fault["loc"])
        for parent in parents:
            kind = _section_of(kind, parent) or kind
        near = _nearest(kind, key[:MAX_QUOTED])
        return f"{where}unknown key" + (f"; did you mean {near}?" if near else "")
    if fault["type"] == "value_error":
        return f"{where}{_short(str(fault['ctx']['error']), 5 * MAX_QUOTED)}"
    if fault["type"] == "missing":
        return f"{where}not there"
    seen = fault["input"]
    choice = fault["type"] in ("literal_error", "enum") and isinstance(seen, str)
    open_value = choice or isinstance(seen, int | float) or not private
    shown = _short(repr(seen)) if open_value else type(seen).__name__
    shown = shown[:40] if private else shown
    return f"{where}{fault['msg'].replace('valid tuple', 'list')} (seen: {shown})"


def _short(text: str, most: int = MAX_QUOTED) -> str:
    """What a message quotes of a value: its beginning."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def read_as_field(kind: type[BaseModel], key: str, text: str, value: Any) -> Any:
    """What a text means under a dotted key: the value that YAML reads, or the text itself where the field takes a text.

    So `on` stays a word where words are to be chosen from, and `0123` the name of a revision.

    Args:
        kind: the outermost section.
        key: such as `run.precision`.
        text: as it was written.
        value: as YAML reads it.
    """
    *parents, last = key.split(".")
    section: type[BaseModel] | None = kind
    for parent in parents:
        section = _section_of(section, parent) if section else None
    known = section is not None and last in section.model_fields
    if section is None or not known or type(value) in (str, list, dict, type(None)):
        return value
    accepted = _accepted(section.model_fields[last].annotation)
    return text if (str in accepted and type(value) not in accepted) or text in accepted else value


def _accepted(annotation: Any) -> tuple[Any, ...]:
    """Types and words that an annotation allows by itself, outside of lists and tables."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(one for inner in get_args(annotation) for one in _accepted(inner))
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return _accepted(get_args(annotation)[0]) if get_origin(annotation) is Annotated else (annotation,)


def _nearest(section: type[BaseModel], key: str) -> str | None:
    """The nearest spelling among a section's keys, else among those of the sections inside it, as `optim.steps`."""
    inside = {name: _section_of(section, name) for name in section.model_fields}
    below = {inner: f"{name}.{inner}" for name, kind in inside.items() if kind for inner in kind.model_fields}
    here = nearest(key, section.model_fields, 1, 0.6)
    return here[0] if here else next((below[inner] for inner in nearest(key, below, 1, 0.6)), None)


def _section_of(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The section behind a key, also where it may be left out, or there are several."""
    inner: list[Any] = [section.model_fields[key].annotation] if key in section.model_fields else []
    while inner and not (isinstance(inner[0], type) and issubclass(inner[0], BaseModel)):
        inner = [*get_args(inner[0]), *inner[1:]]
    return inner[0] if inner else None


def refuse_remote_code(values: Any, where: str) -> None:
    """Refuse data that request remote code, at any depth.

    Raises:
        ConfigError: names the key.
    """
    if isinstance(values, dict):
        for key, value in cast("dict[str, Any]", values).items():
            # An implementation with a slash names a repository whose kernels would be fetched and run.
            kernel = key.endswith(("_implementation", "_implementation_internal")) and "/" in str(value)
            if (key in REMOTE_CODE_KEYS and value) or kernel:
                raise ConfigError(
                    f"{where} asks to run its own code",
                    expected="plain data",
                    seen=f"the key '{key}'",
                    hint="remove the key, if the model works without that code; NeuroFlamingo never runs it",
                )
            refuse_remote_code(value, where)
    elif isinstance(values, list):
        for value in cast("list[Any]", values):
            refuse_remote_code(value, where)


def read_model_json(file: Path, kind: type = dict) -> Any:
    """Read a JSON file of a model or tokenizer within limits; tokenizers have up to 100 MB.

    Raises:
        ModelError: no JSON of this kind, too large, or nested too deeply (exit 65).
    """
    return read_json(file, expected="plain JSON", name=str(file), error=ModelError, most=MAX_MODEL_JSON, kind=kind)
