"""Choice between the affines of a NIfTI header, as users name them."""

from __future__ import annotations

from typing import Literal, get_args

from neuroflamingo_preprocessing.errors import ScanError, UsageError

Xform = Literal["auto", "sform", "qform"]
"""`auto`: the sform if it has a code, else the qform."""


def checked_xform(xform: str) -> Xform:
    """Check the name of an affine.

    Raises:
        UsageError: not one of the three.
    """
    if xform not in get_args(Xform):
        raise UsageError(f"unknown xform '{xform}'", expected=", ".join(get_args(Xform)), hint="--xform auto")
    return xform  # type: ignore[return-value]


def refuse_xform(name: str, xform: Xform, kind: str) -> None:
    """Refuse the choice of an affine for a format that has only one.

    Raises:
        ScanError: the option is `sform` or `qform`.
    """
    if xform != "auto":
        raise ScanError(
            f"{name} has no {xform}, which was asked for",
            expected="a NIfTI file",
            seen=f"{kind}, which has one affine",
            hint="leave out --xform",
        )
