"""NIfTI files byte by byte, from the standard and without nibabel: what the fuzz tests compare with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

NIFTI_1: list[tuple[str, str, int]] = [
    ("sizeof_hdr", "i4", 0),
    ("dim", "8i2", 40),
    ("intent_code", "i2", 68),
    ("datatype", "i2", 70),
    ("bitpix", "i2", 72),
    ("pixdim", "8f4", 76),
    ("vox_offset", "f4", 108),
    ("scl_slope", "f4", 112),
    ("scl_inter", "f4", 116),
    ("xyzt_units", "u1", 123),
    ("cal_max", "f4", 124),
    ("cal_min", "f4", 128),
    ("toffset", "f4", 136),
    ("qform_code", "i2", 252),
    ("sform_code", "i2", 254),
    ("quatern", "3f4", 256),
    ("qoffset", "3f4", 268),
    ("srow", "12f4", 280),
    ("magic", "S4", 344),
]
NIFTI_2: list[tuple[str, str, int]] = [
    ("sizeof_hdr", "i4", 0),
    ("magic", "S8", 4),
    ("datatype", "i2", 12),
    ("bitpix", "i2", 14),
    ("dim", "8i8", 16),
    ("pixdim", "8f8", 104),
    ("vox_offset", "i8", 168),
    ("scl_slope", "f8", 176),
    ("scl_inter", "f8", 184),
    ("cal_max", "f8", 192),
    ("cal_min", "f8", 200),
    ("toffset", "f8", 216),
    ("qform_code", "i4", 344),
    ("sform_code", "i4", 348),
    ("quatern", "3f8", 352),
    ("qoffset", "3f8", 376),
    ("srow", "12f8", 400),
    ("xyzt_units", "i4", 500),
    ("intent_code", "i4", 504),
]
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
CODES = {np.dtype(kind): code for code, kind in TYPES.items()}
MILLIMETRES = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}


def layout(version: int, order: str) -> np.dtype[Any]:
    """The header as one structured type; `order` is `<` or `>`."""
    fields = NIFTI_1 if version == 1 else NIFTI_2
    formats = []
    for _, kind, _ in fields:
        count, basic = (kind[: len(kind) - 2], kind[-2:]) if kind[0].isdigit() else ("", kind)
        formats.append(f"{count}{order}{basic}" if basic[0] != "S" else basic)
    size = 348 if version == 1 else 540
    named = [name for name, _, _ in fields]
    return np.dtype(
        {"names": named, "formats": formats, "offsets": [place for _, _, place in fields], "itemsize": size}
    )


def header_of(raw: bytes) -> Any:
    """The header of a whole file; the byte order in which the number of axes makes sense, as the standard says."""
    version = 1 if 348 in (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")) else 2
    read = {order: np.frombuffer(raw, layout(version, order), 1)[0] for order in "<>"}
    for order in "<>":
        if 1 <= read[order]["dim"][0] <= 7:
            return read[order]
    return read["<" if int.from_bytes(raw[:4], "little") in (348, 540) else ">"]


@dataclass(frozen=True)
class Told:
    """What the bytes of a file say.

    Attributes:
        values: float32 `[x, y, z]`, scaled.
        sform, qform: to mm, None where the code is 0.
        zooms: voxel sizes in mm.
        rest: bytes behind the last voxel.
    """

    values: np.ndarray
    sform: np.ndarray | None
    qform: np.ndarray | None
    zooms: np.ndarray
    rest: int

    @property
    def affine(self) -> np.ndarray:
        """The sform, else the qform."""
        chosen = self.qform if self.sform is None else self.sform
        assert chosen is not None
        return chosen


def read_by_hand(raw: bytes) -> Told:
    """A file that is known to be readable, decoded as the standard says."""
    header = header_of(raw)
    sizes = [int(n) for n in header["dim"][1 : int(header["dim"][0]) + 1]]
    shape = tuple(sizes[:3])
    assert all(n == 1 for n in sizes[3:])
    order = header.dtype["dim"].base.byteorder
    kind = np.dtype(TYPES[int(header["datatype"])]).newbyteorder("<" if order in "=<" else ">")
    start = int(header["vox_offset"])
    count = int(np.prod(shape))
    stored = np.frombuffer(raw, kind, count, start).reshape(shape, order="F").astype(np.float32)
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope != 0 and not np.isnan(slope):
        with np.errstate(all="ignore"):
            stored = stored * np.float32(slope) + np.float32(inter)
    scale = np.diag([MILLIMETRES[int(header["xyzt_units"]) & 7]] * 3 + [1.0])
    zooms = np.abs(header["pixdim"][1:4].astype(float)) * scale[0, 0]
    rest = len(raw) - start - count * kind.itemsize
    sform = scale @ _sform(header) if header["sform_code"] > 0 else None
    qform = scale @ _qform(header) if header["qform_code"] > 0 else None
    return Told(stored, sform, qform, zooms, rest)


def _sform(header: Any) -> np.ndarray:
    return np.vstack([header["srow"].astype(float).reshape(3, 4), [0, 0, 0, 1]])


def _qform(header: Any) -> np.ndarray:
    b, c, d = header["quatern"].astype(float)
    a = np.sqrt(max(1 - b * b - c * c - d * d, 0.0))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    matrix = np.eye(4)
    hand = -1.0 if header["pixdim"][0] < 0 else 1.0
    matrix[:3, :3] = turn @ np.diag(header["pixdim"][1:4].astype(float) * (1, 1, hand))
    matrix[:3, 3] = header["qoffset"]
    return matrix


def build(
    values: np.ndarray, affine: np.ndarray, *, version: int = 1, order: Any = "<", forms: str = "both", quaternion: Any
) -> bytes:
    """A whole file: header, four bytes without extensions, voxels.

    Args:
        values: `[x, y, z]`, of the type to be stored.
        affine: voxel index to world, mm.
        forms: `sform`, `qform` or `both`.
        quaternion: `(b, c, d)` and the handedness, for the qform.
    """
    header = np.zeros((), layout(version, order))
    header["sizeof_hdr"] = 348 if version == 1 else 540
    header["magic"] = b"n+1\0" if version == 1 else b"n+2\0\r\n\x1a\n"
    header["dim"] = [3, *values.shape, 1, 1, 1, 1]
    header["datatype"], header["bitpix"] = CODES[values.dtype], values.dtype.itemsize * 8
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    header["pixdim"] = [quaternion[1], *spacing, 0, 0, 0, 0]
    header["vox_offset"] = 352 if version == 1 else 544
    header["scl_slope"], header["xyzt_units"] = 1, 2
    header["sform_code"], header["qform_code"] = int(forms != "qform"), int(forms != "sform")
    header["srow"], header["quatern"], header["qoffset"] = affine[:3].ravel(), quaternion[0], affine[:3, 3]
    voxels = values.astype(values.dtype.newbyteorder(order)).tobytes(order="F")
    return header.tobytes() + bytes(4) + voxels
