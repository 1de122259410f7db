"""The base of every config section, the check of values against it, and the refusal of code in data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from neuroflamingo_preprocessing.errors import ConfigError, ModelError
from neuroflamingo_preprocessing.files import read_json

# Keys by which a config or tokenizer file asks for code that lies beside it to be imported and run.
REMOTE_CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "trust_remote_code", "custom_generate", "code_revision"})


class Section(BaseModel):
    """A frozen part of a config or recipe; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def check_settings(kind: type[BaseModel], values: dict[str, Any], where: str) -> dict[str, Any]:
    """Validated settings with all defaults filled in, as a plain dict.

    Raises:
        ConfigError: all faults in one message.
    """
    try:
        return kind.model_validate(values).model_dump()
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise ConfigError(
            f"{where} does not fit",
            expected=f"keys {', '.join(kind.model_fields)}",
            seen="; ".join(faults),
            hint="correct or remove these keys",
        ) from error


def refuse_remote_code(values: Any, where: str) -> None:
    """Refuse data that ask for code to be run, at any depth.

    Raises:
        ConfigError: names the key.
    """
    if isinstance(values, dict):
        for key, value in values.items():
            # An implementation with a slash names a repository whose kernels would be fetched and run.
            kernel = key.endswith(("_implementation", "_implementation_internal")) and "/" in str(value)
            if (key in REMOTE_CODE_KEYS and value) or kernel:
                raise ConfigError(
                    f"{where} asks for code of its own to be run",
                    expected="plain data",
                    seen=f"the key '{key}'",
                    hint="remove the key, if the model works without that code; NeuroFlamingo never runs it",
                )
            refuse_remote_code(value, where)
    elif isinstance(values, list):
        for value in values:
            refuse_remote_code(value, where)


def refuse_remote_code_in(file: Path) -> None:
    """`refuse_remote_code` for a JSON file of a model or tokenizer; tokenizers have up to 100 MB.

    Raises:
        ConfigError: names the key.
        ModelError: it is not JSON (exit 65).
    """
    plain = read_json(file, expected="plain JSON", name=str(file), error=ModelError, most=2**28, kind=object)
    refuse_remote_code(plain, str(file))
