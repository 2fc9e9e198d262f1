"""What SAM 2 and EdgeTAM follow objects through a film by: memory attention, memory encoder, pointers, under Meta's names.

"SAM 2: Segment Anything in Images and Videos" (arXiv 2408.00714, section 4 and appendix C.1; facebookresearch/sam2,
`memory_attention.py`, `memory_encoder.py` and `sam2_base.py`). A memory is what a frame and an object's mask on it leave
behind: a map of few channels, and a pointer, the mask token of the decoder. The features of a later frame attend to such
memories, and the decoder makes a mask of the result. Everything is float32 but the stored maps, which are bfloat16 in the
reference too. EdgeTAM ("EdgeTAM: On-Device Track Anything Model", arXiv 2501.07256) keeps a few tokens in place of a map.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn
from torch.nn import functional as F

from ....utils.text import counted
from ...errors import SAMError
from ...kernels.memory_attention import FastMemoryAttention, Memories

NO_OBJECT = -1024.0
"""The logit of every pixel of an object that is not in the image (`NO_OBJ_SCORE`)."""

# Of Meta's configs/sam2*/*.yaml, the same for every size; no weight's shape tells them.
_HEADS, _THETA, _POSITION_SHARE = 1, 10000.0, 0.1  # the perceiver has one head, too
_MASK_SCALE, _MASK_BIAS = 20.0, -10.0
_TEMPERATURE, _EPS = 10000.0, 1e-6
MOST_POINTERS = 16
STORED_TYPE = torch.bfloat16
"""Of the maps that frames leave behind."""
_MASK_STRIDE = 16  # of the memory encoder: pixels of the square for a token
_PERCEIVER = "spatial_perceiver."


class PerceiverShape(NamedTuple):
    """What `Perceiver` needs to be built.

    Attributes:
        anywhere, side: tokens that see the whole map, and on a side of the grid those that see a part of it each.
        layers, inner, hidden: of its layers, their attention, and their feed-forward layers.
    """

    anywhere: int
    side: int
    layers: int
    inner: int
    hidden: int


class MemoryShape(NamedTuple):
    """Everything that `Memory` needs to be built.

    Attributes:
        channels: of the image's main map, and of a pointer.
        width: channels of a memory's map.
        frames: memories that are attended to: the prompted frames' count as one, so the last `frames - 1`.
        layers, hidden: of the memory attention, and of its feed-forward layers.
        fuser_layers: of the memory encoder.
        dated: whether a pointer says how long ago it was (SAM 2.1).
        marks_absence: whether the map of an object that is not in the image is marked as such (SAM 2.1).
        perceiver: of what makes tokens of a map (EdgeTAM); None where the map itself is stored.
    """

    channels: int
    width: int
    frames: int
    layers: int
    hidden: int
    fuser_layers: int
    dated: bool
    marks_absence: bool
    perceiver: PerceiverShape | None


def read_memory(shapes: Mapping[str, torch.Size]) -> MemoryShape:
    """The shape of the memory in a state dict's shapes under Meta's names.

    Raises:
        SAMError: a tensor is missing, or has an unknown shape.
    """
    try:
        frames, _, _, width = shapes["maskmem_tpos_enc"]
        _, channels = shapes["no_obj_ptr"]
        if not width or channels % width or width % 4:
            raise ValueError(f"no_obj_ptr of {channels} channels for memories of {width}")
        return MemoryShape(
            channels=channels,
            width=width,
            frames=frames,
            layers=_count(shapes, r"memory_attention\.layers\.(\d{1,3})\."),
            hidden=shapes["memory_attention.layers.0.linear1.weight"][0],
            fuser_layers=_count(shapes, r"memory_encoder\.fuser\.layers\.(\d{1,3})\."),
            dated="obj_ptr_tpos_proj.weight" in shapes,
            marks_absence="no_obj_embed_spatial" in shapes,
            perceiver=_read_perceiver(shapes, width) if any(name.startswith(_PERCEIVER) for name in shapes) else None,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise SAMError(f"{error} is missing or has an unknown shape") from error


def _read_perceiver(shapes: Mapping[str, torch.Size], width: int) -> PerceiverShape:
    in_grid, layer = shapes[_PERCEIVER + "latents_2d"][0], _PERCEIVER + "layers.0."
    inner = shapes[layer + "attn.to_q.weight"][0]
    if math.isqrt(in_grid) ** 2 != in_grid or inner != width:
        raise ValueError(_PERCEIVER + "latents_2d")
    return PerceiverShape(
        anywhere=shapes[_PERCEIVER + "latents"][0],
        side=math.isqrt(in_grid),
        layers=_count(shapes, rf"{re.escape(_PERCEIVER)}layers\.(\d{{1,3}})\."),
        inner=inner,
        hidden=shapes[layer + "ff.1.weight"][0],
    )


def _count(shapes: Mapping[str, torch.Size], pattern: str) -> int:
    return 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)


class Remembered(NamedTuple):
    """What one frame leaves behind of an object.

    Attributes:
        map: bfloat16 `[h*w, width]`, or EdgeTAM's tokens in its place.
        pointer: float32 `[C]`.
    """

    map: Tensor
    pointer: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.map.nbytes + self.pointer.nbytes


class Recalled(NamedTuple):
    """What a frame is to attend to of one object.

    Attributes:
        maps: memories' maps `[h*w, width]`, each with its age: 0 for a prompted frame, else 1 for the frame before, and so on.
        pointers: pointers `[C]`, each with the frames since then.
    """

    maps: Sequence[tuple[int, Tensor]]
    pointers: Sequence[tuple[int, Tensor]]


class Memory(nn.Module):
    """The part of SAM 2 and 2.1 that only films need."""

    def __init__(self, shape: MemoryShape) -> None:
        super().__init__()
        self.shape, channels, width = shape, shape.channels, shape.width
        self.memory_attention = MemoryAttention(channels, width, shape.layers, shape.hidden)
        self.memory_encoder = MemoryEncoder(channels, width, shape.fuser_layers)
        self.obj_ptr_proj = MLP(channels, channels, channels, 3)
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(shape.frames, 1, 1, width))
        self.no_mem_pos_enc = nn.Parameter(
            torch.zeros(1, 1, channels)
        )  # of the checkpoints; no published configuration uses it
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, channels))
        self.mask_downsample = nn.Conv2d(1, 1, 4, stride=4)
        self.obj_ptr_tpos_proj = nn.Linear(channels, width) if shape.dated else None
        self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, width)) if shape.marks_absence else None
        self.spatial_perceiver = None if shape.perceiver is None else Perceiver(width, shape.perceiver)

    def conditioned(
        self, features: Tensor, objects: Sequence[Recalled], film_frames: int, plan: FastMemoryAttention | None = None
    ) -> list[Tensor]:
        """A frame's features after they have attended to what is known of each object.

        Args:
            features: `[C, h, w]`, without `no_mem_embed`.
            objects: what is known of each.
            film_frames: length of the film, which the age of a pointer is a share of where it is a short one.
            plan: that runs the memory attention in the place of the module, see `SAM2Model.memory_plan`.

        Returns:
            `[C, h, w]` for each object.
        """
        channels, height, width = features.shape
        places = sine_positions(channels, (height, width), features.device)
        tokens = features.flatten(1).T + _POSITION_SHARE * places
        memories = [self._memory(one, *self._places((height, width)), film_frames) for one in objects]
        turns = rotations(channels // _HEADS, (height, width), features.device)
        attended = (plan or self.memory_attention)(tokens, memories, turns.cosines, turns.sines)
        return [one.T.reshape(channels, height, width) for one in attended]

    def _places(self, grid: tuple[int, int]) -> tuple[Tensor, "Rotations"]:
        """Positions `[K, width]` of the tokens of one memory, and how these are turned as keys; those anywhere have neither."""
        width, device, shape = self.shape.width, self.no_obj_ptr.device, self.shape.perceiver
        if shape is None:
            return sine_positions(width, grid, device), rotations(self.shape.channels // _HEADS, grid, device)
        side = (shape.side, shape.side)
        places, turns = sine_positions(width, side, device), rotations(self.shape.channels // _HEADS, side, device)
        free = turns.cosines.new_zeros(shape.anywhere, turns.cosines.shape[1])
        turns = Rotations(torch.cat([free + 1, turns.cosines]), torch.cat([free, turns.sines]))
        return F.pad(places, (0, 0, shape.anywhere, 0)), turns

    def _memory(self, known: Recalled, places: Tensor, turns: "Rotations", film_frames: int) -> Memories:
        """Memories and pointers as tokens."""
        width = self.shape.width
        maps = torch.cat([values.to(places) for _, values in known.maps])
        # Meta counts from the oldest: the last of `maskmem_tpos_enc` is that of prompted frames, the first the latest frame's.
        ages = [self.maskmem_tpos_enc[age - 1, 0] for age, _ in known.maps]
        positions = torch.cat([places + age for age in ages])
        if known.pointers:
            pointers = torch.stack([pointer.to(places) for _, pointer in known.pointers])
            dates = pointers.new_zeros(len(pointers), width)
            if self.obj_ptr_tpos_proj is not None:
                most = min(film_frames, MOST_POINTERS) - 1
                since = torch.tensor([date for date, _ in known.pointers], dtype=torch.float32, device=places.device) / most
                dates = self.obj_ptr_tpos_proj(_sine(since, self.shape.channels))
            pieces = self.shape.channels // width  # of a pointer, which is wider than a memory's map
            maps = torch.cat([maps, pointers.reshape(-1, width)])
            positions = torch.cat([positions, dates.repeat_interleave(pieces, 0)])
        return Memories(maps, positions, sum(len(values) for _, values in known.maps), *turns)

    def remembered(self, features: Tensor, logits: Tensor, pointer: Tensor, object_score: Tensor, prompted: bool) -> Remembered:
        """What a frame leaves behind of an object: alone, since in a batch the same object's sums would differ in the last bit.

        Args:
            features: the frame's `[C, h, w]`, without `no_mem_embed`.
            logits: low-resolution mask logits `[4h, 4w]`, `NO_OBJECT` where the object is absent.
            pointer: `[C]`, see `pointers`.
            object_score: logit `[]` that the object is in the image.
            prompted: whether its mask was made from a prompt, and is taken as it is seen, on or off.
        """
        side = _MASK_STRIDE * features.shape[-1]
        full = F.interpolate(logits[None, None], (side, side), mode="bilinear", align_corners=False)
        share = (full > 0).float() if prompted else full.sigmoid()
        found = self.memory_encoder(features[None], share * _MASK_SCALE + _MASK_BIAS)[0]
        if self.no_obj_embed_spatial is not None:
            found = found + (object_score <= 0).float() * self.no_obj_embed_spatial[0, :, None, None]
        tokens = found.flatten(1).T if self.spatial_perceiver is None else self.spatial_perceiver(found)
        return Remembered(tokens.to(STORED_TYPE).contiguous(), pointer)

    def pointers(self, tokens: Tensor, is_there: Tensor) -> Tensor:
        """Mask tokens `[n, C]` as object pointers `[n, C]`; an object that is not in the image has `no_obj_ptr`."""
        return torch.where(is_there[:, None], self.obj_ptr_proj(tokens), self.no_obj_ptr)


class MemoryAttention(nn.Module):
    """Layers in which a frame's tokens attend to themselves, and then to an object's memories."""

    def __init__(self, channels: int, width: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MemoryAttentionLayer(channels, width, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, memories: Sequence[Memories], cosines: Tensor, sines: Tensor) -> list[Tensor]:
        """Tokens `[h*w, C]` -> the same after each object's memories; what precedes the first of these is computed once.

        Args:
            tokens: of a frame.
            memories: of each object.
            cosines, sines: see `Rotations`, for the tokens.
        """
        turns = Rotations(cosines, sines)
        first, *others = self.layers
        begun, found = first.begin(tokens, turns), []
        for memory in memories:
            one = first.end(begun, memory, turns)
            for layer in others:
                one = layer.end(layer.begin(one, turns), memory, turns)
            found.append(self.norm(one))
        return found


class MemoryAttentionLayer(nn.Module):
    """Self attention, cross attention to memories, and a feed-forward layer, each after its norm and added to what was."""

    def __init__(self, channels: int, width: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = RoPEAttention(channels, channels)
        self.cross_attn_image = RoPEAttention(channels, width)
        self.linear1, self.linear2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def begin(self, tokens: Tensor, turns: "Rotations") -> Tensor:
        """The half that knows no object."""
        own = self.norm1(tokens)
        return tokens + self.self_attn(own, own, own, turns, turns, len(own))

    def end(self, tokens: Tensor, memory: Memories, turns: "Rotations") -> Tensor:
        """The half that is an object's own."""
        keys = memory.tokens + memory.positions
        attend, queries, key_turns = self.cross_attn_image, self.norm2(tokens), Rotations(memory.cosines, memory.sines)
        tokens = tokens + attend(queries, keys, memory.tokens, turns, key_turns, memory.turned)
        return tokens + self.linear2(F.relu(self.linear1(self.norm3(tokens))))


class RoPEAttention(nn.Module):
    """Attention whose queries and keys are turned by their place on the grid ("RoFormer", arXiv 2104.09864, in two axes)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj, self.v_proj = nn.Linear(width, channels), nn.Linear(width, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, turns: "Rotations", key_turns: "Rotations", turned: int
    ) -> Tensor:
        """Queries `[h*w, C]` to keys and values `[K, width]`; of the keys the first ones are `turned`, map by map."""
        q, k, v = self.q_proj(queries), self.k_proj(keys), self.v_proj(values)
        q = turns.turned(q)
        k = torch.cat([key_turns.turned(k[:turned]), k[turned:]])
        return self.out_proj(F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0])


class Rotations(NamedTuple):
    """Cosines and sines `[h*w, D/2]` of the angles by which pairs of channels are turned."""

    cosines: Tensor
    sines: Tensor

    def turned(self, x: Tensor) -> Tensor:
        """`[r * h*w, D]` of r grids, one after the other."""
        pairs = x.unflatten(0, (-1, len(self.cosines))).unflatten(-1, (-1, 2))
        one, other = pairs[..., 0], pairs[..., 1]
        turned = one * self.cosines - other * self.sines, one * self.sines + other * self.cosines
        return torch.stack(turned, -1).flatten(-2).flatten(0, 1)


def rotations(channels: int, grid: tuple[int, int], device: torch.device) -> Rotations:
    """Of a grid (h, w): the first half of the pairs turns with x, the second with y."""
    height, width = grid
    speeds = 1.0 / _THETA ** (torch.arange(0, channels, 4, dtype=torch.float32)[: channels // 4] / channels)
    x, y = torch.arange(width).repeat(height), torch.arange(height).repeat_interleave(width)
    angles = torch.cat([torch.outer(x.float(), speeds), torch.outer(y.float(), speeds)], 1)
    return Rotations(angles.cos().to(device), angles.sin().to(device))


class MemoryEncoder(nn.Module):
    """A frame's features and a mask, fused into a map of few channels."""

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        self.mask_downsampler = MaskDownSampler(channels)
        self.pix_feat_proj = nn.Conv2d(channels, channels, 1)
        self.fuser = nn.Module()
        self.fuser.layers = nn.ModuleList(CXBlock(channels) for _ in range(layers))
        self.out_proj = nn.Conv2d(channels, width, 1) if width != channels else nn.Identity()

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Features `[1, C, h, w]` and a mask `[1, 1, 16h, 16w]`, scaled as logits -> `[1, width, h, w]`."""
        fused = self.pix_feat_proj(features) + self.mask_downsampler(masks)
        for layer in self.fuser.layers:
            fused = layer(fused)
        return self.out_proj(fused)


class Perceiver(nn.Module):
    """A map as a few tokens: some that see all of it, and some that see a window each (`perceiver.py` of EdgeTAM)."""

    def __init__(self, width: int, shape: PerceiverShape) -> None:
        super().__init__()
        self.side = shape.side
        self.latents = nn.Parameter(torch.zeros(shape.anywhere, width))
        self.latents_2d = nn.Parameter(torch.zeros(shape.side**2, width))
        self.layers = nn.ModuleList(PerceiverLayer(width, shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, found: Tensor) -> Tensor:
        """`[width, h, w]` -> tokens `[K, width]`, first those that see all."""
        width, height, _ = found.shape
        places = sine_positions(width, tuple(found.shape[1:]), found.device)[None]
        window = height // self.side
        windows = found.view(width, self.side, window, self.side, window).permute(1, 3, 2, 4, 0).flatten(2, 3).flatten(0, 1)
        tokens, local = self.latents[None], self.latents_2d[:, None]
        for layer in self.layers:
            tokens, local = layer(tokens, found.flatten(1).T[None], places), layer(local, windows, None)
        return self.norm(torch.cat([tokens[0], local[:, 0]]))


class PerceiverLayer(nn.Module):
    """Tokens attend to what they see, then to each other, each followed by a feed-forward layer."""

    def __init__(self, width: int, shape: PerceiverShape) -> None:
        super().__init__()
        self.attn, self.self_attn = PerceiverAttention(width, shape.inner), PerceiverAttention(width, shape.inner, alone=True)
        self.ff, self.self_ff = _feed_forward(width, shape.hidden), _feed_forward(width, shape.hidden)

    def forward(self, tokens: Tensor, seen: Tensor, places: Tensor | None) -> Tensor:
        """Tokens `[n, K, width]` and what they see `[n, T, width]` at its places -> `[n, K, width]`."""
        attend = self.attn
        tokens = tokens + attend(attend.norm_latents(tokens), attend.norm_x(seen), places)
        tokens = tokens + self.ff(tokens)
        own = self.self_attn.norm(tokens)
        tokens = tokens + self.self_attn(own, own, None)
        return tokens + self.self_ff(tokens)


class PerceiverAttention(nn.Module):
    """Attention of one head; `alone` has one norm for queries and what they see."""

    def __init__(self, width: int, inner: int, alone: bool = False) -> None:
        super().__init__()
        for name in ("norm",) if alone else ("norm_x", "norm_latents"):
            self.add_module(name, nn.LayerNorm(width))
        self.to_q, self.to_kv = nn.Linear(width, inner, bias=False), nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, queries: Tensor, seen: Tensor, places: Tensor | None) -> Tensor:
        """Normed tokens `[n, K, width]` -> `[n, K, width]`; the places are added to keys and values alike."""
        keys, values = self.to_kv(seen).chunk(2, -1)
        if places is not None:
            keys, values = keys + places, values + places
        return self.to_out(F.scaled_dot_product_attention(self.to_q(queries), keys, values))


def _feed_forward(width: int, hidden: int) -> nn.Sequential:
    layers = nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False)
    return nn.Sequential(nn.LayerNorm(width), *layers)


class MaskDownSampler(nn.Module):
    """Four convolutions that each halve a mask's sides, and one to the features' channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers, width = [], 1
        for _ in range(int(math.log2(_MASK_STRIDE))):
            layers += [nn.Conv2d(width, 4 * width, 3, 2, 1), LayerNorm2d(4 * width), nn.GELU()]
            width *= 4
        self.encoder = nn.Sequential(*layers, nn.Conv2d(width, channels, 1))

    def forward(self, masks: Tensor) -> Tensor:
        """`[n, 1, 16h, 16w]` -> `[n, C, h, w]`."""
        return self.encoder(masks)


class CXBlock(nn.Module):
    """ConvNeXt's block ("A ConvNet for the 2020s", arXiv 2201.03545)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = LayerNorm2d(channels)
        self.pwconv1, self.pwconv2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`[n, C, h, w]`, the same again."""
        inner = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(inner)))).permute(0, 3, 1, 2)


def sine_positions(channels: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Positions of a grid's tokens `[h*w, C]`: y and x in sines and cosines (`PositionEmbeddingSine`)."""
    height, width = grid
    order = torch.arange(channels // 2, dtype=torch.float32)
    slowness = _TEMPERATURE ** (2 * (order // 2) / (channels // 2))
    parts = []
    for count in (height, width):
        place = torch.arange(1, count + 1, dtype=torch.float32) / (count + _EPS) * (2 * math.pi)
        angles = place[:, None] / slowness
        parts.append(torch.stack([angles[:, ::2].sin(), angles[:, 1::2].cos()], 2).flatten(1))
    y, x = parts
    return torch.cat([y.repeat_interleave(width, 0), x.repeat(height, 1)], 1).to(device)


def _sine(positions: Tensor, channels: int) -> Tensor:
    """Positions `[n]` in one axis as `[n, C]`, sines before cosines (`get_1d_sine_pe`)."""
    order = torch.arange(channels // 2, dtype=torch.float32, device=positions.device)
    angles = positions[:, None] / _TEMPERATURE ** (2 * (order // 2) / (channels // 2))
    return torch.cat([angles.sin(), angles.cos()], 1)


def build_memory(state: Mapping[str, Tensor]) -> Memory | str | None:
    """The memory that a state dict's tensors under Meta's names hold; why not, where they are not whole; None for none at all.

    Args:
        state: the tensors of a checkpoint's video part, of any float type.
    """
    if not state:
        return None
    try:
        with torch.device("meta"):
            memory = Memory(read_memory({name: tensor.shape for name, tensor in state.items()}))
    except SAMError as error:
        return str(error)
    expected = {name: tensor.shape for name, tensor in memory.state_dict().items()}
    wrong = sorted(
        name for name in expected.keys() | state.keys() if name not in state or expected.get(name) != state[name].shape
    )
    if wrong:
        return f"{counted(len(wrong), 'tensor')} missing, unknown or of a different shape ({', '.join(wrong[:3])})"
    memory.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return memory.eval().requires_grad_(False)
