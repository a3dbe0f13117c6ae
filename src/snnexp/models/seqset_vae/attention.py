"""Attention within sets of different sizes: without padding, because those of one size are a plain view, or with (`padding`)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnexp.models.seqset_vae.padding import Padded, Sets

AnySets = Sets | Padded
Share = Callable[[Tensor, AnySets], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, sets: AnySets, heads: int) -> Tensor:
    """Return the attention of the queries of each set to the keys of that set, softmax(q k^T / sqrt(d)) v in each head, in the shape of q.

    Each tensor holds either the members of all sets one after another [E, W], or m rows for each set [M, m, W].
    """
    if q.dim() == k.dim() == 3:
        mixed = F.scaled_dot_product_attention(*(split_heads(x, x.shape[1], heads) for x in (q, k, v)))
        return mixed.transpose(1, 2).reshape(q.shape)
    if isinstance(sets, Padded):
        full = [x if x.dim() == 3 else sets.pad(x) for x in (q, k, v)]
        mask = None if k.dim() == 3 else sets.inside[:, None, None]
        mixed = F.scaled_dot_product_attention(*(split_heads(x, x.shape[1], heads) for x in full), attn_mask=mask)
        mixed = mixed.transpose(1, 2).flatten(2)
        return mixed if q.dim() == 3 else sets.unpad(mixed)
    parts = []
    for queries, keys, values in zip(*(split_by_size(x, sets.runs, heads) for x in (q, k, v)), strict=True):
        mixed = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)
        parts.append(mixed.reshape(-1, q.shape[-1]) if q.dim() == 2 else mixed.flatten(2))
    return torch.cat(parts)


def split_by_size(x: Tensor, runs: Sequence[tuple[int, int]], heads: int) -> list[Tensor]:
    """Return one tensor [k, heads, n, W / heads] for the k sets of each size n."""
    if x.dim() == 3:
        return [split_heads(part, x.shape[1], heads) for part in x.split([k for _, k in runs])]
    return [split_heads(part, n, heads) for part, (n, _) in zip(x.split([n * k for n, k in runs]), runs, strict=True)]


def share_all_rows(x: Tensor, sets: AnySets) -> Tensor:
    """Return all rows of x [m, W] for each set, [M, m, W]."""
    return x.expand(len(sets.sizes) if isinstance(sets, Padded) else sum(k for _, k in sets.runs), -1, -1)


def share_first_rows(x: Tensor, sets: AnySets) -> Tensor:
    """Return the first n rows of x [m, W] for each set of n members, [E, W]."""
    if isinstance(sets, Padded):
        return x.index_select(0, sets.place)
    return torch.cat([x[:n].repeat(k, 1) for n, k in sets.runs])


def repeat_for_members(x: Tensor, sets: AnySets) -> Tensor:
    """Return the row that x [M, 1, W] has for each set once for each of its members, [E, W]."""
    if isinstance(sets, Padded):
        return x.squeeze(1).index_select(0, sets.owner)
    parts = x.split([k for _, k in sets.runs])
    return torch.cat([part.expand(-1, n, -1).flatten(0, 1) for part, (n, _) in zip(parts, sets.runs, strict=True)])


def split_heads(x: Tensor, rows: int, heads: int) -> Tensor:
    """Return x, `rows` rows of width W for each set, as [sets, heads, rows, W / heads]."""
    return x.reshape(-1, rows, heads, x.shape[-1] // heads).transpose(1, 2)


class Attention(nn.Module):
    """Attention with `heads` heads, between linear layers, of queries to the contexts of their own set."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: Tensor, context: Tensor, sets: AnySets, share: Share | None = None) -> Tensor:
        """Return the result in the shape of the queries; both are [E, W] or [M, m, W]; `share` gives queries [m, W] to every set."""
        q = self.query(queries)
        return self.out(attend(q if share is None else share(q, sets), self.key(context), self.value(context), sets, self.heads))


class AttentionBlock(nn.Module):
    """The MAB of the Set Transformer (Lee et al. 2019) without the residual path of the queries: h = LN(attention), then LN(h + FF(h)).

    With `residual` false the last part is LN(FF(h)). Queries and context are [E, W] or [M, m, W]; with `share`, queries [m, W] are shared
    among the sets. The result has the shape of the (shared) queries.
    """

    def __init__(self, width: int, heads: int, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.attention = Attention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, queries: Tensor, context: Tensor, sets: AnySets, share: Share | None = None) -> Tensor:
        """Return the transformed queries."""
        h = self.norm1(self.attention(queries, context, sets, share))
        return self.norm2(h + self.feed_forward(h) if self.residual else self.feed_forward(h))


class InducedAttention(nn.Module):
    """The ISAB (Lee et al. 2019): the members of a set exchange information through `inducing` learned points I; x + MAB(x, MAB(I, x)).

    x [E, W] or [M, m, W]; the result has its shape. `residual` is passed on to the blocks.
    """

    def __init__(self, width: int, heads: int, inducing: int, residual: bool = True) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(inducing, width))
        nn.init.xavier_uniform_(self.points)
        self.gather = AttentionBlock(width, heads, residual)
        self.spread = AttentionBlock(width, heads, residual)

    def forward(self, x: Tensor, sets: AnySets) -> Tensor:
        """Return x after the exchange within each set."""
        return x + self.exchange(x, sets)

    def exchange(self, x: Tensor, sets: AnySets) -> Tensor:
        """Return the same without the residual path."""
        return self.spread(x, self.gather(self.points, x, sets, share=share_all_rows), sets)
