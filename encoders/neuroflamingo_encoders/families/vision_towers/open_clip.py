"""The vision tower of any open_clip model, on slices or images; open_clip is imported only when one is built.

Source: mlfoundations/open_clip. Nothing is downloaded: the name gives the network, your file the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from neuroflamingo_encoders.families.vision_towers.slices import PictureEncoder
from neuroflamingo_preprocessing.errors import ModelError

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroflamingo_encoders.card import EncoderCard


def _open_clip() -> Any:
    """Import open_clip.

    Raises:
        ModelError: it is not installed, or torchvision does not match torch (a RuntimeError from its operators).
    """
    try:
        import open_clip  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:
        raise ModelError(
            "open_clip cannot be imported",
            expected="open_clip_torch, and a torchvision that was built for the same torch (CPU or CUDA)",
            seen=f"{type(error).__name__}: {error}",
            hint="pip install 'neuroflamingo[clip]'; or use 'clip-tower' or 'siglip-tower', which need neither",
        ) from error
    return open_clip


def _build(name: str) -> Any:
    """Build the untrained tower of a model that open_clip lists; hub names are refused, since they would download."""
    open_clip = _open_clip()
    if name not in open_clip.list_models():
        raise ModelError(
            f"open_clip has no model named '{name}'",
            expected="a name of open_clip.list_models(), without a hub's prefix",
            seen=name,
            hint="for instance ViT-B-32 or ViT-L-14-quickgelu",
            exit_code=78,
        )
    return open_clip.create_model(name, pretrained=None).visual


class OpenClipTower(PictureEncoder):
    """Tower of open_clip: patch tokens as in OpenFlamingo, of the last layer, without class token and last norm.

    Newer releases of open_clip apply the norm to patch tokens too, older ones only to the class token. The norm is
    removed, so that tokens do not depend on the release (differs from upstream). Towers that open_clip takes from timm
    return the result of timm's `forward_features`, including its own norm.

    Raises:
        ModelError: open_clip cannot be imported, the name is unknown, or the tower has no patch tokens or other sizes.
    """

    def __init__(self, card: EncoderCard, config: dict | None = None) -> None:
        super().__init__(card, config)
        s = self.settings
        self.visual = _build(s["model"])
        if hasattr(self.visual, "output_tokens"):
            self.visual.output_tokens = True
            self.visual.ln_post = nn.Identity()
        elif not hasattr(self.visual, "trunk"):
            raise ModelError(
                f"the tower of '{s['model']}' returns no patch tokens",
                expected="a vision transformer, or a tower from timm",
                seen=type(self.visual).__name__,
                hint="choose a ViT",
                exit_code=78,
            )
        seen = self._side()
        if seen != s["side"]:
            raise ModelError(
                f"the tower of '{s['model']}' takes images of another size than its card says",
                expected=f"side {s['side']}",
                seen=f"side {seen}",
                hint="give the options side, patch and width of that model",
                exit_code=78,
            )

    def _side(self) -> int:
        size = getattr(self.visual, "image_size", self.settings["side"])
        return int(size[0] if isinstance(size, tuple | list) else size)

    def patch_tokens(self, pictures: Float[Tensor, "n 3 row column"]) -> Float[Tensor, "n patch width"]:
        """Tokens of the patches, row by row."""
        if hasattr(self.visual, "output_tokens"):
            tokens = self.visual(pictures)[1]
        else:
            trunk = self.visual.trunk
            tokens = trunk.forward_features(pictures)
            tokens = tokens.flatten(2).mT if tokens.ndim == 4 else tokens[:, trunk.num_prefix_tokens :]
        expected = ((self.settings["side"] // self.settings["patch"]) ** 2, self.settings["width"])
        if tuple(tokens.shape[1:]) != expected:
            raise ModelError(
                f"the tower of '{self.settings['model']}' has other sizes than its card says",
                expected=f"{expected[0]} tokens of width {expected[1]}",
                seen=f"{tokens.shape[1]} tokens of width {tokens.shape[2]}",
                hint="give the options side, patch and width of that model",
                exit_code=78,
            )
        return tokens
