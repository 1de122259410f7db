"""Images for 2D towers from volumes: slices, window, padding, size, colours; and the world positions of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.layers.tiny_config import constants
from neuroflamingo_preprocessing.errors import ScanError, UsageError

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroflamingo_encoders.card import EncoderCard

_COLOURS = ("red", "green", "blue")


def slice_indices(length: int, count: int) -> list[int]:
    """Compute the centres of `count` equal sections of an axis, in ascending order."""
    return [int((i + 0.5) * length / count) for i in range(count)]


def cut(volume: Float[Tensor, "n x y z"], axis: str, count: int) -> Float[Tensor, "n count down across"]:
    """Extract planes across an axis: columns up the earlier of the other two axes, rows down the later one."""
    where = "xyz".index(axis) + 1
    index = torch.tensor(slice_indices(volume.shape[where], count), device=volume.device)
    planes = volume.index_select(where, index).movedim(where, 1)
    return planes.transpose(2, 3).flip(2)


def to_unit(volume: Float[Tensor, "n x y z"], window: str, low: float, high: float) -> Tensor:
    """Scale values from `low` to `high` to 0..1, clipped; percentiles are those of each volume's non-zero voxels."""
    if window == "value":
        return ((volume - low) / (high - low)).clamp(0, 1)
    scaled = torch.zeros_like(volume)
    for row, one in enumerate(volume):
        inside = one[one != 0]
        if len(inside):
            bottom, top = (inside.kthvalue(1 + round(p / 100 * (len(inside) - 1))).values for p in (low, high))
            scaled[row] = torch.where(one != 0, (one - bottom) / (top - bottom).clamp(min=1e-6), 0).clamp(0, 1)
    return scaled


def to_square(pictures: Float[Tensor, "n count down across"], side: int) -> Tensor:
    """Pad images symmetrically with black to a square and resize them with anti-aliasing."""
    down, across = pictures.shape[-2:]
    longest = max(down, across)
    above, left = (longest - down) // 2, (longest - across) // 2
    square = F.pad(pictures, (left, longest - across - left, above, longest - down - above))
    return F.interpolate(square, (side, side), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def slices_as_scans(volume: Float[Tensor, "n x y z"], card: EncoderCard) -> Float[Tensor, "n slice channel row column"]:
    """Make each slice of the volumes a separate scan, with its own `<image>`.

    By default one `<image>` stands for all slices of a volume, in order, as for frames. These images are for the same
    tower built with `slices=0`, which then gives the same tokens, one slice per scan.

    Args:
        volume: prepared, on the card's grid.
        card: declares axis, count, window and the image's side.

    Raises:
        UsageError: the card takes images, not volumes.
    """
    s = constants(card, None)
    if not s["slices"]:
        raise UsageError(f"'{card.name}' takes images, not volumes", expected="a card with slices", seen="slices=0")
    return _framed(volume.float(), s)


def _framed(volume: Float[Tensor, "n x y z"], s: dict[str, Any]) -> Float[Tensor, "n slice channel row column"]:
    """Make greyscale images 0..1 of the slices that the card names."""
    planes = cut(to_unit(volume, s["window"], s["low"], s["high"]), s["axis"], s["slices"])
    return to_square(planes, s["side"])[:, :, None].expand(-1, -1, len(_COLOURS), -1, -1)


class PictureEncoder(BrainEncoder):
    """Base of 2D towers: makes images as the card says, and returns the tokens of all slices, slice by slice.

    A subclass implements `patch_tokens(pictures [n 3 row column]) -> [n patch width]`, without a class token.

    Args:
        card: declares in `network` the tower's sizes, the slices and the colours' means and deviations.
        config: the same names and `width`, instead of the card's.
    """

    def __init__(self, card: EncoderCard, config: dict | None = None) -> None:
        super().__init__(card)
        self.settings = constants(card, config)
        for kind in ("mean", "std"):
            values = torch.tensor([self.settings[f"{kind}_{colour}"] for colour in _COLOURS]).view(3, 1, 1)
            self.register_buffer(f"colour_{kind}", values, persistent=False)
        self.colour_mean: Tensor
        self.colour_std: Tensor

    def patch_tokens(self, pictures: Float[Tensor, "n 3 row column"]) -> Float[Tensor, "n patch width"]:
        """Compute the tokens of normalised images."""
        raise NotImplementedError(f"{type(self).__name__} does not implement patch_tokens")

    def pictures(self, x: Float[Tensor, "n channel *sides"]) -> Float[Tensor, "n count 3 row column"]:
        """Make the normalised images of each scan, in float32.

        Raises:
            ScanError: non-finite values, or an image with values outside 0..1.
        """
        x, s = x.float(), self.settings
        colour = s["slices"] == 0
        if not bool(x.isfinite().all()) or (colour and not bool(((x >= 0) & (x <= 1)).all())):
            raise ScanError(
                f"the values cannot be turned into images for '{self.card.name}'",
                expected="values 0..1" if colour else "finite numbers",
                seen=f"{float(x.min()):g} to {float(x.max()):g}",
                hint="divide 8-bit images by 255; replace NaN by 0",
            )
        raw = x[:, None] if colour else _framed(x[:, 0], s)
        return (raw - self.colour_mean.float()) / self.colour_std.float()

    def forward(self, x: Float[Tensor, "batch scan channel *sides"]) -> EncoderOutput:
        """Compute the tokens `[batch, scan, slice * row * column, width]`, and positions if the card has a grid."""
        pictures = self.pictures(rearrange(x, "b s ... -> (b s) ..."))
        tokens = self.patch_tokens(rearrange(pictures, "n k c h w -> (n k) c h w").to(x.dtype))
        tokens = rearrange(tokens, "(b s k) t w -> b s (k t) w", b=len(x), s=x.shape[1])
        return EncoderOutput(tokens, positions=self._positions(x))

    def _positions(self, x: Tensor) -> Float[Tensor, "token 3"] | None:
        """Compute the world position of each patch's centre; None for images, and if no grid is declared."""
        spacing, origin, s = self.card.scan.spacing_mm, self.card.scan.origin_mm, self.settings
        if not s["slices"] or spacing is None or origin is None:
            return None
        sides = dict(zip("xyz", x.shape[3:], strict=True))
        across, down = (name for name in "xyz" if name != s["axis"])
        longest = max(sides[across], sides[down])
        middle = (torch.arange(s["side"] // s["patch"]) + 0.5) * s["patch"] / s["side"] * longest - 0.5
        index = {
            s["axis"]: torch.tensor(slice_indices(sides[s["axis"]], s["slices"])).float()[:, None, None],
            down: (sides[down] - 1 - (middle - (longest - sides[down]) // 2))[None, :, None],
            across: (middle - (longest - sides[across]) // 2)[None, None, :],
        }
        places = torch.broadcast_tensors(*(origin[i] + spacing[i] * index[name] for i, name in enumerate("xyz")))
        return torch.stack(places, dim=-1).reshape(-1, 3).to(x.device)
