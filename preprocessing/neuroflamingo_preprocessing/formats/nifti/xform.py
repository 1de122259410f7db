"""Which affine of a NIfTI header is used, as users name it."""

from __future__ import annotations

from typing import Literal, get_args

from neuroflamingo_preprocessing.errors import ScanError, UsageError

Xform = Literal["auto", "sform", "qform"]
"""`auto`: the sform if it has a code, else the qform."""


def checked_xform(xform: str) -> Xform:
    """The same, if it is one of the three.

    Raises:
        UsageError: it is not.
    """
    if xform not in get_args(Xform):
        raise UsageError(f"there is no xform '{xform}'", expected=", ".join(get_args(Xform)), hint="--xform auto")
    return xform  # type: ignore[return-value]


def refuse_form(name: str, xform: Xform, kind: str) -> None:
    """Formats that say their place once have no form to choose.

    Raises:
        ScanError: one was asked for.
    """
    if xform != "auto":
        raise ScanError(
            f"{name} has no {xform}, which was asked for",
            expected="a NIfTI file",
            seen=f"{kind}, which says its place once",
            hint="leave --xform out",
        )
