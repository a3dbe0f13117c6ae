"""Attention within sets of unlike sizes, without padding: sets are ordered by size, so that those of one size are a view."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Sets(Protocol):
    """Whatever tells the sizes of its sets: `runs` of (n, k), ascending, k sets of n members.

    Passed on whole: only what is not compiled looks inside, or each choice of sizes would be compiled anew.
    """

    runs: Sequence[tuple[int, int]]


Share = Callable[[Tensor, Sets], Tensor]


@torch.compiler.disable
def attend(q: Tensor, k: Tensor, v: Tensor, sets: Sets, heads: int) -> Tensor:
    """Attention of the queries of each set to its own keys, softmax(q k^T / sqrt(d)) v in each head; of the shape of q.

    Each tensor holds either the members of all sets one after another [E, W], or m rows for each set [M, m, W].
    """
    if q.dim() == k.dim() == 3:
        mixed = F.scaled_dot_product_attention(*(rows_of_heads(x, x.shape[1], heads) for x in (q, k, v)))
        return mixed.transpose(1, 2).reshape(q.shape)
    parts = []
    for members, keys, values in zip(*(by_size(x, sets.runs, heads) for x in (q, k, v)), strict=True):
        mixed = F.scaled_dot_product_attention(members, keys, values).transpose(1, 2)
        parts.append(mixed.reshape(-1, q.shape[-1]) if q.dim() == 2 else mixed.flatten(2))
    return torch.cat(parts)


def by_size(x: Tensor, runs: Sequence[tuple[int, int]], heads: int) -> list[Tensor]:
    """The sets of each size as [k, heads, n, W / heads]."""
    if x.dim() == 3:
        return [rows_of_heads(part, x.shape[1], heads) for part in x.split([k for _, k in runs])]
    return [rows_of_heads(part, n, heads) for part, (n, _) in zip(x.split([n * k for n, k in runs]), runs, strict=True)]


@torch.compiler.disable  # an expanded result of a compiled graph cannot take its gradient
def all_to_each(x: Tensor, sets: Sets) -> Tensor:
    """All rows of [m, W] for each set, [M, m, W]."""
    return x.expand(sum(k for _, k in sets.runs), -1, -1)


@torch.compiler.disable
def first_to_each(x: Tensor, sets: Sets) -> Tensor:
    """The first n rows of [m, W] for each set of n members, [E, W]."""
    return torch.cat([x[:n].repeat(k, 1) for n, k in sets.runs])


@torch.compiler.disable
def one_to_all(x: Tensor, sets: Sets) -> Tensor:
    """The one row of each set [M, 1, W] for each of its members, [E, W]."""
    return torch.cat(
        [part.expand(-1, n, -1).flatten(0, 1) for part, (n, _) in zip(x.split([k for _, k in sets.runs]), sets.runs, strict=True)]
    )


def rows_of_heads(x: Tensor, rows: int, heads: int) -> Tensor:
    return x.reshape(-1, rows, heads, x.shape[-1] // heads).transpose(1, 2)


class Attention(nn.Module):
    """Attention with `heads` heads and a linear layer before and after, of queries to contexts of their own set."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: Tensor, context: Tensor, sets: Sets, share: Share | None = None) -> Tensor:
        """Queries and context [E, W] or [M, m, W]; the result has the queries' shape. `share`: queries [m, W] are given to every set."""
        q = self.query(queries)
        return self.out(attend(q if share is None else share(q, sets), self.key(context), self.value(context), sets, self.heads))


class AttentionBlock(nn.Module):
    """MAB of the Set Transformer (Lee et al. 2019), without the residual of the queries: h = LN(attention), LN(h + FF(h)).

    Without `residual` LN(FF(h)). Queries and context [E, W] or [M, m, W], or queries [m, W] to `share` among the sets; the result has the
    (shared) queries' shape.
    """

    def __init__(self, width: int, heads: int, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.attention = Attention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, queries: Tensor, context: Tensor, sets: Sets, share: Share | None = None) -> Tensor:
        """Attend and transform."""
        h = self.norm1(self.attention(queries, context, sets, share))
        return self.norm2(h + self.feed_forward(h) if self.residual else self.feed_forward(h))


class InducedAttention(nn.Module):
    """ISAB (Lee et al. 2019): the members of a set exchange what they know by way of `inducing` learned points; x + MAB(x, MAB(I, x)).

    x [E, W] or [M, m, W]; the result has its shape. `residual` is that of the blocks.
    """

    def __init__(self, width: int, heads: int, inducing: int, residual: bool = True) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(inducing, width))
        nn.init.xavier_uniform_(self.points)
        self.gather = AttentionBlock(width, heads, residual)
        self.spread = AttentionBlock(width, heads, residual)

    def forward(self, x: Tensor, sets: Sets) -> Tensor:
        """Exchange within each set."""
        return x + self.exchanged(x, sets)

    def exchanged(self, x: Tensor, sets: Sets) -> Tensor:
        """The same without the residual path."""
        return self.spread(x, self.gather(self.points, x, sets, share=all_to_each), sets)
