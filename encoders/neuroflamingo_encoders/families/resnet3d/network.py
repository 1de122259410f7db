"""3D ResNets with MONAI: a grid of features as tokens (MedicalNet, 3D-Neuro-SimCLR).

Sources: Tencent/MedicalNet (MIT), emilykaczmarek/3D-Neuro-SimCLR (MIT). MedicalNet's own network has a first
convolution of stride 2 and dilates its last two stages instead of striding; MONAI's does not, with the same names and
shapes. The card says which one is built. As upstream, the shortcut of type A passes no gradient to earlier layers.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self

from einops import rearrange
from monai.networks.nets.resnet import ResNet, ResNetBlock, ResNetBottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.families.resnet3d.cards import TINY
from neuroflamingo_encoders.layers.intensity import scale_intensity
from neuroflamingo_encoders.layers.tiny_config import constants, positions

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroflamingo_encoders.card import EncoderCard


def shortcut_a(x: Tensor, planes: int, stride: int) -> Tensor:
    """Take every `stride`-th voxel, with zeros in additional channels; MONAI's version does not support bfloat16."""
    kept = x.detach()[:, :, ::stride, ::stride, ::stride]
    return F.pad(kept, (0, 0, 0, 0, 0, 0, 0, planes - x.shape[1]))


def own_shortcut(block: Any, stride: int | None = None) -> None:
    """Replace MONAI's shortcut of type A, which is not a module, by `shortcut_a`; other shortcuts stay."""
    if isinstance(block.downsample, partial):
        declared = block.downsample.keywords
        block.downsample = partial(shortcut_a, planes=declared["planes"], stride=stride or declared["stride"])


def dilate(stage: nn.Sequential, by: int) -> None:
    """Change a stage of stride 2 to stride 1 with dilated 3 x 3 x 3 convolutions; no weight changes."""
    for block in stage:
        for conv in block.modules():
            if isinstance(conv, nn.Conv3d):
                conv.stride = (1, 1, 1)
                if conv.kernel_size == (3, 3, 3):
                    conv.dilation = conv.padding = (by, by, by)
        own_shortcut(block, stride=1)


class ResNet3dEncoder(BrainEncoder):
    """Volumes to the features of one stage, in the order of the card's axes; batch norm keeps its running statistics.

    Args:
        card: declares the channels, and by `network` blocks, shortcut, strides, dilation, stage and intensity.
        config: the same names and `width` (of the tapped stage), instead of the card's.
    """

    def __init__(self, card: EncoderCard, config: dict | None = None) -> None:
        super().__init__(card)
        c = constants(card, config)
        self.stage, self.intensity = int(c["stage"]), str(c["intensity"])
        block = ResNetBottleneck if c["bottleneck"] else ResNetBlock
        first = c["width"] // block.expansion // 2 ** (self.stage - 1)
        net = ResNet(
            block,
            [int(n) for n in c["blocks"].split()],
            [first, 2 * first, 4 * first, 8 * first],
            n_input_channels=card.scan.axes[0].size or 1,
            conv1_t_stride=c["conv1_stride"],
            shortcut_type=c["shortcut"],
            bias_downsample=c["bias_downsample"],
            feed_forward=False,
        )
        for number, layer in ((3, net.layer3), (4, net.layer4)):
            if c[f"dilation_{number}"] > 1:
                dilate(layer, c[f"dilation_{number}"])
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            own_shortcut(stage[0])
        self.conv1, self.bn1, self.act, self.maxpool = net.conv1, net.bn1, net.act, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """A few thousand weights; sides of twice `TINY`, or an untrained deep network would not be local."""
        axes, config = TINY[card.name]
        return cls(card.shrunk({axis: 2 * size for axis, size in axes.items()}, width=config["width"]), config)

    def features(self, x: Float[Tensor, "n channel *sides"]) -> Float[Tensor, "n width *grid"]:
        """Compute the output of the tapped stage; later stages are not run."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4)[: self.stage]:
            x = layer(x)
        return x

    def forward(self, x: Float[Tensor, "batch scan channel *sides"]) -> EncoderOutput:
        """Compute the tokens `[batch, scan, token, width]`, and positions if the card has a grid."""
        x, batch = rearrange(x, "b s ... -> (b s) ..."), len(x)
        grid = self.features(scale_intensity(x, self.intensity))
        tokens = rearrange(grid, "(b s) w x y z -> b s (x y z) w", b=batch)
        return EncoderOutput(tokens, positions=positions(self.card, tokens.shape[2], tokens))
