"""Attention with SAM's decomposed relative positions (add_decomposed_rel_pos of image_encoder.py), without its passes.

Stock code writes and reads the whole matrix of scores, heads x 4096 x 4096, some eight times. Here the position terms come from
one product with the flipped tables, read through a skewed view, and the scores of a few queries at a time stay in the cache.
"""

import functools
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Scores that are worked on at a time, on a CPU. Finer pieces fit smaller caches, but threads wait for each other after each:
# beside another load on the cores, pieces of 64 MiB are a seventh faster, alone a twentieth slower.
_PIECE_BYTES = 16 << 20
log = logging.getLogger("samkit")

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int, Tensor], None]

_WARM_UP, _ROUNDS = 2, 5
BIAS_BYTES = 256 << 20  # position terms that are written out at a time, on a GPU
_ALIGNED = 8  # numbers: CUDA's fused kernels take heads and rows of a mask that are multiples of 16 bytes in fp16


class Positions(NamedTuple):
    """Position terms of each query: `rows` and `columns`, views `[B, h, w, n]` of one product.

    Key (i, j) of an n x n grid adds `rows[..., i] + columns[..., j]` to its score.
    """

    rows: Tensor
    columns: Tensor


def position_table(rel_pos_h: Tensor, rel_pos_w: Tensor) -> Tensor:
    """Both tables `[2n-1, d]`, flipped, side by side: `[d, 2(2n-1)]`."""
    return torch.cat([rel_pos_h.flip(0), rel_pos_w.flip(0)]).t().contiguous()


def positions(q: Tensor, table: Tensor, height: int, width: int) -> Positions:
    """The position terms of queries `[B, h*w, d]` in raster order, by one product with the `position_table`.

    Query row y needs the table's entries n-1-y to 2n-2-y, in order: a stride one shorter than the row's walks along them, so
    no table is gathered per row.
    """
    count, distances = q.shape[0], table.shape[1] // 2
    n, step = (distances + 1) // 2, table.shape[1]
    terms = torch.matmul(q.reshape(-1, q.shape[-1]), table)
    shape, image, line = (count, height, width, n), height * width * step, width * step
    rows = terms.as_strided(shape, (image, line - 1, step, 1), n - 1)
    columns = terms.as_strided(shape, (image, line, step - 1, 1), distances + n - 1)
    return Positions(rows, columns)


def attend_in_pieces(q: Tensor, k: Tensor, v: Tensor, table: Tensor, width: int, out: Tensor) -> None:
    """Attention for a CPU: as many heads and rows of queries at a time as the cache holds.

    Args:
        q: `[B, h*w, d]`, B heads (of any windows), queries in raster order over `width` columns.
        k, v: `[B, n*n, d]`.
        table: see `position_table`.
        width: columns of the queries' grid.
        out: `[B, h*w, d]`, written to.
    """
    count, queries, size = q.shape
    height, keys = queries // width, k.shape[1]
    heads, rows = _piece(count, height, width * keys * q.element_size())
    buffer = q.new_empty(heads * rows * width * keys)
    for b in range(0, count, heads):
        part = slice(b, b + heads)
        some_q, some_k, some_v = (x[part].contiguous() for x in (q, k, v))  # rows of a qkv matrix lie pages apart
        terms = positions(some_q, table, height, width)
        for y in range(0, height, rows):
            here, lines = slice(y * width, (y + rows) * width), min(rows, height - y)
            scores = buffer[: len(some_q) * lines * width * keys].view(len(some_q), lines * width, keys)
            _write_bias(terms, slice(y, y + rows), scores)
            torch.baddbmm(scores, some_q[:, here], some_k.transpose(1, 2), alpha=size**-0.5, out=scores)
            torch.softmax(scores, -1, out=scores)
            out[part, here] = torch.bmm(scores, some_v)


def _piece(count: int, height: int, row_bytes: int) -> tuple[int, int]:
    """How many of `count` heads and `height` rows go into a piece: a head for each core first, then rows, then more heads."""
    cores = min(count, torch.get_num_threads())
    rows = min(height, max(1, _PIECE_BYTES // (row_bytes * cores)))
    heads = min(count, max(cores, _PIECE_BYTES // (row_bytes * height))) if rows == height else cores
    return heads, rows


def _write_bias(terms: Positions, rows: slice, scores: Tensor) -> None:
    """Fill `scores` `[B, rows*w, n*n]` with the position terms of some rows of queries."""
    row, column = (term[:, rows] for term in terms)
    torch.add(row[..., :, None], column[..., None, :], out=scores.view(*row.shape, row.shape[-1]))


def attend_with_bias(q: Tensor, k: Tensor, v: Tensor, table: Tensor, width: int, out: Tensor) -> None:
    """Attention for a GPU: torch's fused kernel, with the position terms written out as a mask for some heads at a time.

    Arguments as for `attend_in_pieces`.
    """
    count, queries, _ = q.shape
    keys = k.shape[1]
    row = keys + -keys % _ALIGNED  # torch would copy a mask with other rows
    heads = min(count, max(1, BIAS_BYTES // (queries * row * q.element_size())))
    buffer = q.new_empty(heads, queries, row)
    for b in range(0, count, heads):
        some_q, some_k, some_v = (x[b : b + heads].contiguous() for x in (q, k, v))
        bias = buffer[: len(some_q), :, :keys]
        _write_bias(positions(some_q, table, queries // width, width), slice(None), bias)
        out[b : b + heads] = _fused(some_q, some_k, some_v, bias)


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """torch's attention of heads `[B, L, d]` in the one form that CUDA's fused kernels take: four dimensions, aligned heads.

    In any other it falls back, without a word, to the kernel that writes out all scores.
    """
    size = q.shape[-1]
    if size % _ALIGNED:  # SlimSAM-77's heads of 14
        q, k, v = (F.pad(x, (0, -size % _ALIGNED)) for x in (q, k, v))
    return F.scaled_dot_product_attention(q[None], k[None], v[None], bias[None], scale=size**-0.5)[0, ..., :size]


def attend_fused(q: Tensor, k: Tensor, v: Tensor, table: Tensor, width: int, out: Tensor) -> None:
    """Attention for a GPU with Triton: one kernel that adds the position terms as it goes, and writes out no mask.

    Arguments as for `attend_in_pieces`.
    """
    q, k, v = (x.contiguous() for x in (q, k, v))
    terms = positions(q, table, q.shape[1] // width, width)
    rows, columns = (term.reshape(*q.shape[:2], -1) for term in terms)
    n = rows.shape[-1]

    def add_positions(score: Tensor, _: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + rows[head, query, key // n] + columns[head, query, key % n]

    out.copy_(_flex_attention(q.device.type)(q[None], k[None], v[None], score_mod=add_positions)[0])


@functools.cache
def _flex_attention(device: str) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=False)


def faster_on_gpu(q: Tensor, table: Tensor, width: int) -> Attend:
    """The faster of the GPU's two on queries, keys and values like `q`, measured; it compiles, which takes seconds.

    Without Triton (many a Windows machine), or where the compiled kernel fails or is not right, it is torch's own.
    """
    try:
        exact, ours = torch.empty_like(q), torch.empty_like(q)
        attend_with_bias(q, q, q, table, width, exact)
        attend_fused(q, q, q, table, width, ours)
        right = bool((exact - ours).abs().max() < 64 * torch.finfo(q.dtype).eps * exact.abs().max())
        arguments = q, q, q, table, width, ours
        faster = right and _seconds(attend_fused, *arguments) < _seconds(attend_with_bias, *arguments)
    except (AttributeError, ImportError, RuntimeError) as error:  # torch's compiler wraps Triton's errors in its RuntimeError
        log.info("fused attention is not available: %s", error)
        faster = False
    log.debug("global attention: %s", "fused" if faster else "with a bias")
    return attend_fused if faster else attend_with_bias


def _seconds(attend: Attend, *arguments: object) -> float:
    device = arguments[0].device
    best = float("inf")
    for _ in range(_WARM_UP + _ROUNDS):
        _wait(device)
        begun = time.perf_counter()
        attend(*arguments)
        _wait(device)
        best = min(best, time.perf_counter() - begun)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
