"""The paper's encoder and decoder bodies (appendix A).

Both keep images channels last in memory and write the transposed convolutions in their
sub-pixel form. Neither changes what is computed; `make bench` measures what they save.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDINGS = ("same", "valid")
FILTERS = (20, 40)
KERNEL = 5
UNITS = 512


def feature_map(image_shape: tuple[int, int, int], padding: str) -> tuple[int, int, int]:
    """(C, H, W) of the encoder's last feature map, which is the decoder's first."""
    _, height, width = image_shape
    for _ in FILTERS:
        lost = 0 if padding == "same" else KERNEL - 1
        height, width = (height - lost) // 2, (width - lost) // 2
    return FILTERS[-1], height, width


class Encoder(nn.Module):
    """x (B, C, H, W) to the shared encoding h (B, 512).

    Two 5x5 convolutions of 20 and 40 filters with stride 1, each followed by 2x2 max pooling and
    ReLU, then a fully connected layer of 512 units with ReLU (appendix A).
    """

    def __init__(self, image_shape: tuple[int, int, int], padding: str = "same") -> None:
        super().__init__()
        self.padding = KERNEL // 2 if padding == "same" else 0
        self.conv1 = nn.Conv2d(image_shape[0], FILTERS[0], KERNEL, padding=self.padding)
        self.conv2 = nn.Conv2d(FILTERS[0], FILTERS[1], KERNEL, padding=self.padding)
        channels, height, width = feature_map(image_shape, padding)
        self.full = nn.Linear(channels * height * width, UNITS)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        # Pooling first leaves ReLU a quarter of the work; the two commute.
        a = F.relu(F.max_pool2d(self.conv1(x), 2))
        a = F.relu(F.max_pool2d(self.conv2(a), 2))
        a = a.permute(0, 2, 3, 1).flatten(1)  # free, as the channels are last in memory
        return F.relu(self.full(a))


class SubPixelTransposedConv(nn.Module):
    """A 5x5 transposed convolution of stride 2 that doubles height and width.

    It equals `nn.ConvTranspose2d(in_channels, out_channels, 5, stride=2, padding=p,
    output_padding=1)` with the same `weight` and `bias`. An output pixel sees only every second
    tap of the 5x5 filter: 3x3 inputs at most. So all four outputs (row and column even or odd)
    of an input pixel come from one 3x3 convolution with four times the channels, which CPUs run
    faster (Shi et al., 2016, give the correspondence).

    Args:
        in_channels, out_channels: as for `nn.ConvTranspose2d`.
        padding: p: 2 where the encoder's convolutions pad by 2, 0 where they do not pad.
    """

    def __init__(self, in_channels: int, out_channels: int, padding: int) -> None:
        super().__init__()
        like = nn.ConvTranspose2d(in_channels, out_channels, KERNEL)
        self.weight, self.bias = like.weight, like.bias  # torch's own initial values
        self.padding = 2 - padding // 2

    def forward(self, a: Tensor) -> Tensor:
        """(N, C_in, H, W) to the four phases (N, 4 C_out, H', W'), phase-major channels."""
        c_in, c_out = self.weight.shape[:2]
        taps = F.pad(self.weight, (0, 1, 0, 1)).view(c_in, c_out, 3, 2, 3, 2).flip(2, 4)
        kernel = taps.permute(3, 5, 1, 0, 2, 4).reshape(4 * c_out, c_in, 3, 3)
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        return F.conv2d(a, kernel, self.bias.repeat(4), padding=self.padding)


def interleave(phases: Tensor) -> Tensor:
    """Phases (N, 4C, H, W) to the image (N, C, 2H, 2W) that they are the pixels of."""
    n, channels, height, width = phases.shape
    split = phases.permute(0, 2, 3, 1).view(n, height, width, 2, 2, channels // 4)
    image = split.transpose(2, 3).reshape(n, 2 * height, 2 * width, channels // 4)
    return image.permute(0, 3, 1, 2)  # channels last in memory


def phases_of(image: Tensor) -> Tensor:
    """The inverse of `interleave`: (N, C, 2H, 2W) to (N, 4C, H, W)."""
    n, channels, height, width = image.shape
    split = image.permute(0, 2, 3, 1).reshape(n, height // 2, 2, width // 2, 2, channels)
    return split.transpose(2, 3).reshape(n, height // 2, width // 2, -1).permute(0, 3, 1, 2)


class Decoder(nn.Module):
    """z (N, D) to a value for each pixel (the paper's p(x|z), appendix A).

    A single fully connected layer onto the feature map, then two transposed convolutions that
    mirror the encoder. `units` above 0 puts a hidden layer of that width before them, with ReLU.
    """

    def __init__(self, image_shape: tuple[int, int, int], z_dim: int, units: int = 0,
                 padding: str = "same") -> None:
        super().__init__()
        self.map_shape = feature_map(image_shape, padding)
        channels, height, width = self.map_shape
        pad = KERNEL // 2 if padding == "same" else 0
        self.full1 = nn.Linear(z_dim, units) if units else None
        self.full2 = nn.Linear(units or z_dim, channels * height * width)
        self.conv1 = SubPixelTransposedConv(FILTERS[1], FILTERS[0], pad)
        self.conv2 = SubPixelTransposedConv(FILTERS[0], image_shape[0], pad)

    def forward(self, z: Tensor) -> Tensor:
        """(N, D) to the phases (N, 4C, H/2, W/2) of the image; `interleave` makes the image."""
        channels, height, width = self.map_shape
        a = z if self.full1 is None else F.relu(self.full1(z))
        a = F.relu(self.full2(a))
        a = a.view(-1, height, width, channels).permute(0, 3, 1, 2)  # channels last in memory
        return self.conv2(interleave(F.relu(self.conv1(a))))


def glorot(weight: Tensor, fan_in: int, fan_out: int, stride: int = 1) -> None:
    """Uniform of variance 2/(fan_in + fan_out) (Glorot & Bengio, 2010); the fans as TensorFlow and
    Keras counted them in 2019, which leave the stride of a transposed convolution out."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    nn.init.uniform_(weight, -bound, bound)


def he(weight: Tensor, fan_in: int, fan_out: int, stride: int = 1) -> None:
    """Normal of variance 2 over the number of inputs that an output sees (He et al., 2015)."""
    nn.init.normal_(weight, std=math.sqrt(2 * stride**2 / fan_in))


INITIALISATIONS = {"torch": None, "glorot": glorot, "he": he}
"""Each draws a layer's weight, whose bias starts at zero; `torch`: what torch's layers do themselves."""


def initialise(module: nn.Module, name: str) -> None:
    """Draw the weights of every layer in `module` anew, and set their biases to zero."""
    if INITIALISATIONS[name] is None:
        return
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, SubPixelTransposedConv)):
            transposed = isinstance(layer, SubPixelTransposedConv)
            c_in, c_out = layer.weight.shape[:2][::1 if transposed else -1]
            taps = layer.weight[0, 0].numel()
            INITIALISATIONS[name](layer.weight, c_in * taps, c_out * taps, 2 if transposed else 1)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
