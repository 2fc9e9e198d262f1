"""RepViT-M1 with a feature pyramid, EdgeTAM's image encoder: its weights with every batch norm folded.

"RepViT" (arXiv 2307.09283) as EdgeTAM uses it (arXiv 2501.07256; facebookresearch/EdgeTAM, `edgetam.yaml`): timm's `repvit_m1`,
the last features of each stage. A block's two depthwise convolutions and its residual are one convolution here. The file's
names are timm's. `sam/kernels/repvit.py` runs the same weights faster.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import SAMError
from .hiera import Neck
from .predictor import PreparedImage

BODY = "image_encoder.trunk.body."
"""What Meta's names of the trunk begin with."""
_ROOT = "image_encoder.trunk."
_NORM_EPS = 1e-5
_SIDE = 1024  # pixels; no weight's shape tells
_STRIDE = 16  # pixels for a token of the main map


@dataclass(frozen=True)
class RepViTShape:
    """Everything that `RepViTEncoder` needs.

    Attributes:
        widths, depths, excited: of each stage: channels, blocks, and hidden channels of squeeze and excitation.
        ratio: of an MLP's hidden channels to its channels.
        channels: of the feature pyramid.
        side: pixels on a side of the input.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    excited: tuple[int, ...]
    ratio: int
    channels: int
    side: int

    @property
    def grid(self) -> int:
        """Tokens on a side of the main map."""
        return self.side // _STRIDE


def read_repvit(shapes: Mapping[str, torch.Size]) -> RepViTShape:
    """Detect the image encoder's shape from those of folded weights (`folded`).

    Raises:
        SAMError: a tensor is missing, or has an unknown shape.
    """
    try:
        depths: dict[int, int] = {}
        for match in filter(None, (re.match(rf"{re.escape(_ROOT)}stages\.(\d+)\.blocks\.(\d+)\.", name) for name in shapes)):
            depths[int(match[1])] = max(depths.get(int(match[1]), 0), int(match[2]) + 1)
        if not depths:
            raise KeyError(f"{_ROOT}stages.0.blocks.0.*")
        roots = [f"{_ROOT}stages.{stage}.blocks.0." for stage in range(max(depths) + 1)]
        hidden, width, *_ = shapes[roots[0] + "channel_mixer.conv1.weight"]
        return RepViTShape(
            widths=tuple(shapes[root + "token_mixer.weight"][0] for root in roots),
            depths=tuple(depths[stage] for stage in range(len(roots))),
            excited=tuple(shapes[root + "se.fc1.weight"][0] for root in roots),
            ratio=hidden // width,
            channels=shapes["image_encoder.neck.convs.0.conv.weight"][0],
            side=_SIDE,
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise SAMError(f"this is not a whole EdgeTAM checkpoint: {error} is missing or has an unknown shape.") from error


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An EdgeTAM's weights with every batch norm folded, each block's depthwise convolutions joined, and the stages numbered.

    Args:
        state: Meta's names, float32.

    Raises:
        SAMError: a batch norm or a convolution that does not fit the other.
    """
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(BODY)}
    trunk = {
        re.sub(r"^stages_(\d+)\.", r"stages.\1.", name.removeprefix(BODY)): tensor
        for name, tensor in state.items()
        if name.startswith(BODY)
    }
    plain: dict[str, Tensor] = {}
    for name, value in trunk.items():
        root, _, last = name.rpartition(".")
        if root.endswith(".bn") and f"{root[:-3]}.c.weight" in trunk:
            continue
        if root.endswith(".c") and last == "weight" and f"{root[:-2]}.bn.weight" in trunk:
            weight, bias = _folded(trunk, root[:-2], value)
            plain[f"{root[:-2]}.weight"], plain[f"{root[:-2]}.bias"] = weight, bias
        else:
            plain[name] = value
    joined: dict[str, Tensor] = {}
    for name, value in plain.items():
        root, _, last = name.rpartition(".")
        if not root.endswith((".token_mixer.conv", ".token_mixer.conv1")):
            joined[name] = value
        elif root.endswith(".conv"):
            mixer = root.removesuffix(".conv")
            point = plain.get(f"{mixer}.conv1.{last}")
            fits = point is not None and len(point) == len(value)
            if not fits or (last == "weight" and (value.shape[1:] != (1, 3, 3) or point.shape[1:] != (1, 1, 1))):
                raise SAMError(f"{BODY}{mixer} is not a block of RepViT: its two convolutions do not fit together.")
            joined[f"{mixer}.{last}"] = _whole(value, point) if last == "weight" else (value + point)
    return rest | {_ROOT + name: value.float() for name, value in joined.items()}


def _folded(trunk: Mapping[str, Tensor], root: str, value: Tensor) -> tuple[Tensor, Tensor]:
    """A convolution's weight, and the bias that it gets, in float64."""
    parts = [trunk.get(f"{root}.bn.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
    if value.ndim != 4 or any(part is None or part.shape != value.shape[:1] for part in parts):
        raise SAMError(f"{BODY}{root}.bn does not fit the convolution before it.")
    weight, bias, mean, variance = (part.double() for part in parts)
    factor = weight / (variance + _NORM_EPS).sqrt()
    return value.double() * factor[:, None, None, None], bias - mean * factor


def _whole(value: Tensor, point: Tensor) -> Tensor:
    """3x3 and 1x1 depthwise convolutions and the image itself, as one 3x3 convolution."""
    return value + F.pad(point + 1, (1, 1, 1, 1))


class RepViTEncoder(nn.Module):
    """Trunk and neck: pixels `[B, 3, S, S]`, normalised -> the pyramid's maps, finest first, as of `hiera.ImageEncoder`."""

    def __init__(self, shape: RepViTShape) -> None:
        super().__init__()
        self.img_size = shape.side
        self.trunk = _Trunk(shape)
        self.neck = Neck(list(shape.widths), shape.channels)

    def forward(self, pixels: Tensor | PreparedImage) -> list[Tensor] | PreparedImage:
        """The pyramid's maps; see the class. What `SamPredictor` hands on is encoded already."""
        return pixels if isinstance(pixels, PreparedImage) else self.neck(self.trunk(pixels))


class _Trunk(nn.Module):
    """Pixels -> each stage's last features `[B, h, w, E]`, finest first."""

    def __init__(self, shape: RepViTShape) -> None:
        super().__init__()
        self.stem = _Stem(shape.widths[0])
        before = (None, *shape.widths[:-1])
        self.stages = nn.ModuleList(
            _Stage(*each, shape.ratio) for each in zip(before, shape.widths, shape.depths, shape.excited, strict=True)
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = self.stem.conv2(F.gelu(self.stem.conv1(pixels)))
        seen = []
        for stage in self.stages:
            x = stage(x)
            seen.append(x.permute(0, 2, 3, 1))
        return seen


class _Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, width // 2, 3, 2, 1), nn.Conv2d(width // 2, width, 3, 2, 1)


class _Stage(nn.Module):
    def __init__(self, before: int | None, width: int, depth: int, excited: int, ratio: int) -> None:
        super().__init__()
        self.downsample = None if before is None else _Downsample(before, width, ratio)
        self.blocks = nn.ModuleList(_Block(width, ratio, 0 if index % 2 else excited) for index in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.downsample is None else self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class _Downsample(nn.Module):
    def __init__(self, before: int, width: int, ratio: int) -> None:
        super().__init__()
        self.pre_block = _Block(before, ratio, 0)
        self.spatial_downsample = nn.Conv2d(before, before, 3, 2, 1, groups=before)
        self.channel_downsample = nn.Conv2d(before, width, 1)
        self.ffn = _Mixer(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channel_downsample(self.spatial_downsample(self.pre_block(x)))
        return x + self.ffn(x)


class _Block(nn.Module):
    """`excited` is 0 in every other block, which has no squeeze and excitation."""

    def __init__(self, width: int, ratio: int, excited: int) -> None:
        super().__init__()
        self.token_mixer = nn.Conv2d(width, width, 3, 1, 1, groups=width)
        self.se = _Excitation(width, excited) if excited else None
        self.channel_mixer = _Mixer(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        x = x if self.se is None else x * self.se.gate(x)
        return x + self.channel_mixer(x)


class _Excitation(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def gate(self, x: Tensor) -> Tensor:
        """What an image's channels are multiplied by, `[B, C, 1, 1]`."""
        return torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class _Mixer(nn.Module):
    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, ratio * width, 1), nn.Conv2d(ratio * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.conv1(x)))
