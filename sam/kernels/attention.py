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

from .linear import LinearKind
from .workers import for_each

_PIECE_BYTES = 4 << 20  # scores that a core of a CPU works on at a time: they stay in its cache
_PIECES_PER_THREAD = 4  # at least: the last ones leave cores idle
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


def positions(q: Tensor, table: Tensor, height: int, width: int, first: int = 0) -> Positions:
    """The position terms of queries `[B, h*w, d]`, in raster order from row `first` on, by a product with the `position_table`.

    Query row y needs the table's entries n-1-y to 2n-2-y, in order: a stride one shorter than the row's walks along them, so
    no table is gathered per row.
    """
    count, distances = q.shape[0], table.shape[1] // 2
    n, step = (distances + 1) // 2, table.shape[1]
    terms = torch.matmul(q.reshape(-1, q.shape[-1]), table)
    shape, image, line = (count, height, width, n), height * width * step, width * step
    rows = terms.as_strided(shape, (image, line - 1, step, 1), n - 1 - first)
    columns = terms.as_strided(shape, (image, line, step - 1, 1), distances + n - 1)
    return Positions(rows, columns)


def attend_in_pieces(q: Tensor, k: Tensor, v: Tensor, table: Tensor, width: int, out: Tensor) -> None:
    """Attention for a CPU in windows: as many heads at a time as the cache holds.

    A window is so narrow that its position terms are best added by the product itself: a query's are further components of it,
    and a key has a one where its row and its column are among them.

    Args:
        q: `[B, h*w, d]`, B heads (of any windows), queries in raster order over `width` columns.
        k, v: `[B, n*n, d]`.
        table: see `position_table`.
        width: columns of the queries' grid.
        out: `[B, h*w, d]`, written to.
    """
    count, queries, size = q.shape
    keys, n = k.shape[1], (table.shape[1] // 2 + 1) // 2
    heads = min(count, max(1, _PIECE_BYTES // (queries * keys * q.element_size())))
    buffer = q.new_empty(heads * queries * keys)
    for b in range(0, count, heads):
        part = slice(b, b + heads)
        some_q, some_v = q[part].contiguous(), v[part].contiguous()  # rows of a qkv matrix lie pages apart
        asking, asked = q.new_empty(len(some_q), queries, size + 2 * n), q.new_empty(len(some_q), n, n, size + 2 * n)
        asking[..., :size] = some_q
        for start, term in zip((size, size + n), positions(some_q, table, queries // width, width), strict=True):
            asking[..., start : start + n] = term.flatten(1, 2)
        torch.mul(k[part].unflatten(1, (n, n)), size**-0.5, out=asked[..., :size])
        same = torch.eye(n, dtype=q.dtype)
        asked[..., size : size + n], asked[..., size + n :] = same[:, None], same
        scores = buffer[: len(some_q) * queries * keys].view(len(some_q), queries, keys)
        torch.bmm(asking, asked.flatten(1, 2).transpose(1, 2), out=scores)
        torch.softmax(scores, -1, out=scores)
        out[part] = torch.bmm(scores, some_v)


def attend_by_head(linear: LinearKind, q: Tensor, k: Tensor, v: Tensor, table: Tensor, width: int, out: Tensor) -> None:
    """Attention for a CPU over a whole image: some rows of queries of a head at a time, on all cores.

    The scores are made where the position terms were written, by ATen: oneDNN's layer cannot do that, and loses more by writing
    elsewhere than its product gains.

    Args:
        linear: which linear layers; a head's values are the weights of one.
        q, k, v, table, width, out: as for `attend_in_pieces`.
    """
    keys, size = k.shape[1:]
    at_a_time = max(1, _PIECE_BYTES // (width * keys * q.element_size()))

    def attend(piece: tuple[int, slice]) -> None:
        """Some rows of queries of one head."""
        head, rows = piece
        asked, answers = k[head].t(), linear(v[head].t(), None, q.dtype)
        asking, made = (x[head, rows.start * width : rows.stop * width] for x in (q, out))
        terms = positions(asking[None], table, rows.stop - rows.start, width, rows.start)
        buffer = q.new_empty(1, at_a_time * width, keys)
        for y in range(0, rows.stop - rows.start, at_a_time):
            here = slice(y * width, (y + at_a_time) * width)
            scores = buffer[:, : len(asking[here])]
            _write_bias(Positions(*(term[:, y : y + at_a_time] for term in terms)), scores)
            torch.addmm(scores[0], asking[here], asked, alpha=size**-0.5, out=scores[0])
            torch.softmax(scores, -1, out=scores)
            answers.into(scores[0], made[here])

    for_each(attend, _shares(len(q), q.shape[1] // width))


def attend_without_positions(linear: LinearKind, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Attention for a CPU over a whole image: some queries of a head at a time, on all cores.

    On an AMD with AVX-512, torch's fused kernel took 335 ms for 12 heads of 4,096 tokens in float32 and 347 in bfloat16, and
    these two layers with a softmax between them 361 and 237.

    Args:
        linear: which linear layers; a head's keys, and its values, are the weights of one.
        q, k, v: `[B, T, d]`, B heads.
        out: `[B, T, d]`, written to.
    """
    keys, size = k.shape[1:]
    at_a_time = max(1, _PIECE_BYTES // (keys * q.element_size()))

    def attend(piece: tuple[int, slice]) -> None:
        """Some queries of one head."""
        head, queries = piece
        if q.dtype == torch.float32:
            out[head, queries] = F.scaled_dot_product_attention(*(x[None, None] for x in (q[head, queries], k[head], v[head])))[
                0, 0
            ]
            return
        asked, answers = linear(k[head], None, q.dtype), linear(v[head].t(), None, q.dtype)
        for asking, made in zip(
            (q[head, queries] * size**-0.5).split(at_a_time), out[head, queries].split(at_a_time), strict=True
        ):
            scores = asked.plain(asking)
            answers.into(torch.softmax(scores, -1, out=scores), made)

    for_each(attend, _shares(len(q), q.shape[1]))


def attend_at_once(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of `[W, heads, T, d]` without positions, in windows so small that all scores fit the cache.

    By torch's fused kernel; but in bfloat16 on a CPU two products and a softmax take two thirds of its time (in float32 a sixth
    more than all of it).
    """
    if not q.is_cpu or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    return torch.matmul(torch.softmax(scores, -1, out=scores), v)


def _shares(heads: int, rows: int) -> list[tuple[int, slice]]:
    """Rows of each head in about equal parts, as many for each thread."""
    threads = torch.get_num_threads()
    parts = -(-_PIECES_PER_THREAD * threads // heads)
    parts += next(more for more in range(threads) if (parts + more) * heads % threads == 0)
    size = -(-rows // parts)
    return [(head, slice(start, min(rows, start + size))) for head in range(heads) for start in range(0, rows, size)]


def _write_bias(terms: Positions, scores: Tensor) -> None:
    """Fill `scores` `[B, h*w, n*n]` with the position terms of queries."""
    row, column = terms
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
        _write_bias(positions(some_q, table, queries // width, width), bias)
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
        """A score with the position terms of its query and key."""
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
