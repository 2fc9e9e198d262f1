"""SAM 2's memory attention (sam/models/sam2/memory.py) with the same weights and arithmetic on a CPU, in less time and memory.

A frame's 4,096 tokens attend to up to seven memories of as many. A memory's values have a quarter of the channels that they are
projected to, and weights of attention sum to 1: the projections of values and of what is answered are one product, after the
attention instead of before it. Scores stay in the cache, queries are worked on by one core from their attention to the end of
the layer, and linear layers are those of linear.py. None of it changes the result but for the order of float32 sums.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .linear import Linear, LinearKind
from .workers import for_each

_ROWS, _COLUMNS = 512, 512  # queries and keys whose scores a core works on at a time: they stay in its cache


class Memories(NamedTuple):
    """What is known of an object, as tokens.

    Attributes:
        tokens, positions: `[K, width]`; keys are made of their sum, values of the tokens.
        turned: how many of them, from the first on, are turned by their place: whole maps, one after the other.
        cosines, sines: `[M, C/2]`, of the angles of a map's tokens.
    """

    tokens: Tensor
    positions: Tensor
    turned: int
    cosines: Tensor
    sines: Tensor


class FastMemoryAttention:
    """A plan to run one memory attention on a CPU, in float32.

    Args:
        attention: `MemoryAttention`; its weights are used where they are, or packed.
        linear: which linear layers.
    """

    def __init__(self, attention: nn.Module, linear: LinearKind) -> None:
        # Its parts and not the module itself: the plan is cached for as long as the module lives, and must not be the reason.
        self.layers, self.norm = [_Layer(layer, linear) for layer in attention.layers], attention.norm

    def __call__(self, tokens: Tensor, memories: Sequence[Memories], cosines: Tensor, sines: Tensor) -> list[Tensor]:
        """Tokens `[T, C]` after each object's memories; what precedes the first of these is computed once.

        Args:
            tokens: of a frame.
            memories: of each object.
            cosines, sines: `[T, C/2]`, of the angles by which the tokens are turned.
        """
        first, *others = self.layers
        begun, found = tokens.clone(), []
        first.attend_to_itself(begun, cosines, sines)
        for memory in memories:
            one = begun.clone()
            first.attend_to(one, memory, cosines, sines)
            for layer in others:
                layer.attend_to_itself(one, cosines, sines)
                layer.attend_to(one, memory, cosines, sines)
            found.append(self.norm(one))
        return found


class _Layer:
    """One layer in the plan's form."""

    def __init__(self, layer: nn.Module, linear: LinearKind) -> None:
        own, other = layer.self_attn, layer.cross_attn_image
        channels, kind = own.q_proj.out_features, own.q_proj.weight.dtype
        # Channels are turned in pairs: all first ones before all second ones, they are turned without a gap between them.
        order = torch.cat([torch.arange(0, channels, 2), torch.arange(1, channels, 2)])

        def projection(module: nn.Linear, scale: float = 1.0) -> tuple[Tensor, Tensor]:
            """Weight and bias of a layer whose outputs are turned."""
            return module.weight[order] * scale, module.bias[order] * scale

        def layer_of(weight: Tensor, bias: Tensor) -> Linear:
            """A linear layer in the plan's form."""
            return linear(weight, bias, kind)

        self.linear, scale = linear, math.log2(math.e) * channels**-0.5  # weights are made by powers of 2
        self.norm1, self.norm2, self.norm3 = layer.norm1, layer.norm2, layer.norm3
        queries, keys = projection(own.q_proj, scale), projection(own.k_proj)
        values = own.v_proj.weight, own.v_proj.bias
        self.own = layer_of(*(torch.cat(parts) for parts in zip(queries, keys, values, strict=True)))
        self.own_out = layer_of(own.out_proj.weight, own.out_proj.bias)
        self.asking, self.asked = layer_of(*projection(other.q_proj, scale)), layer_of(*projection(other.k_proj))
        out, value = other.out_proj, other.v_proj
        together = out.weight.double() @ value.weight.double()
        bias = out.weight.double() @ value.bias.double() + out.bias
        self.answered = layer_of(together.to(kind), bias.to(kind))
        self.wide, self.narrow = (layer_of(one.weight, one.bias) for one in (layer.linear1, layer.linear2))

    def attend_to_itself(self, x: Tensor, cosines: Tensor, sines: Tensor) -> None:
        """The half that knows no object: change the tokens `[T, C]` in place."""
        queries, keys, values = x.new_empty(3, *x.shape)

        def project(rows: slice) -> None:
            """Queries, keys and values of some tokens."""
            parts = self.own.plain(self.norm1(x[rows])).chunk(3, 1)
            for part, all_of_them in zip(parts, (queries, keys, values), strict=True):
                all_of_them[rows] = part
            for turned in (queries, keys):
                _turn(turned[rows], cosines[rows], sines[rows])

        def answer(rows: slice) -> None:
            """What some tokens get."""
            self.own_out.add_to(_attend(queries[rows], asked), x[rows])

        rows = _parts(0, len(x), _ROWS)
        for_each(project, rows)
        asked = self._asked(lambda some: (keys[some], values[some]), _parts(0, len(x), _COLUMNS))
        for_each(answer, rows)

    def attend_to(self, x: Tensor, memory: Memories, cosines: Tensor, sines: Tensor) -> None:
        """The half that is an object's own: change the tokens `[T, C]` in place."""

        def keys_and_values(some: slice) -> tuple[Tensor, Tensor]:
            """Of some tokens of the memories; the values are projected after the attention."""
            keys = self.asked.plain(memory.tokens[some] + memory.positions[some])
            if some.start < memory.turned:
                places = torch.arange(some.start, some.stop) % len(memory.cosines)
                _turn(keys, memory.cosines[places], memory.sines[places])
            return keys, memory.tokens[some]

        def answer(rows: slice) -> None:
            """What some tokens get, and the feed-forward layer after it."""
            queries = self.asking.plain(self.norm2(x[rows]))
            _turn(queries, cosines[rows], sines[rows])
            self.answered.add_to(_attend(queries, asked), x[rows])
            self.narrow.add_to(self.wide.plain(self.norm3(x[rows])).relu_(), x[rows])

        columns = _parts(0, memory.turned, _COLUMNS) + _parts(memory.turned, len(memory.tokens), _COLUMNS)
        asked = self._asked(keys_and_values, columns)
        for_each(answer, _parts(0, len(x), _ROWS))

    def _asked(self, keys_and_values: Callable[[slice], tuple[Tensor, Tensor]], parts: Sequence[slice]) -> "list[_Asked]":
        """What is attended to, in parts, in their order."""
        found: dict[int, _Asked] = {}

        def pack(number: int) -> None:
            """One part."""
            keys, values = keys_and_values(parts[number])
            layers = (self.linear(weight, None, keys.dtype) for weight in (keys, values.t()))
            found[number] = _Asked(*layers)

        for_each(pack, range(len(parts)))
        return [found[number] for number in range(len(parts))]


class _Asked(NamedTuple):
    """Some keys and values, as layers: from queries to scores, and from weights to answers."""

    scores: Linear
    answers: Linear


def _attend(queries: Tensor, asked: Sequence[_Asked]) -> Tensor:
    """Answers `[T, width]` to queries `[T, C]`, some keys at a time ("FlashAttention", arXiv 2205.14135, algorithm 1).

    The weights are powers of 2, to scores that are so much larger: torch makes them in a third of the time of powers of e.
    """
    first, *others = asked
    weights = first.scores.plain(queries)
    highest = weights.amax(1, keepdim=True)
    weights.sub_(highest).exp2_()
    total, answers = weights.sum(1, keepdim=True), first.answers.plain(weights)
    for some in others:
        weights = some.scores.plain(queries)
        now = torch.maximum(highest, weights.amax(1, keepdim=True))
        fading, highest = highest.sub_(now).exp2_(), now
        weights.sub_(highest).exp2_()
        total.mul_(fading).add_(weights.sum(1, keepdim=True))
        some.answers.add_to(weights, answers.mul_(fading))
    return answers.div_(total)


def _turn(x: Tensor, cosines: Tensor, sines: Tensor) -> None:
    """Turn pairs of channels of tokens `[T, C]` in place: those of the first half with those of the second."""
    one, other = x.chunk(2, 1)
    turned = (one * cosines).addcmul_(other, sines, value=-1)
    other.mul_(cosines).addcmul_(one, sines)
    one.copy_(turned)


def _parts(start: int, stop: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]
