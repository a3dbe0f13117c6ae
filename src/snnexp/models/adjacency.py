"""The edges of a batch of graphs as a convolution wants them, made on the host where the batch is loaded.

To sort edges, or to leave some out, is to make tensors whose sizes only the values tell: on a GPU the host would have to wait for each, and
torch.compile stops there.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch_geometric.data import Data
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import coalesce, degree, segment

from snnexp.fp32 import at_least_fp32

WEIGHTS = {"gcn": "gcn", "sage": "sage", "gin": "plain", "graphconv": "plain", "gat": "attention", "gatv2": "attention"}
"""By convolution, what weighs an edge: GCN's symmetric norm, with self-loops; SAGE's mean; 1; attention, computed from the nodes."""


class Adjacency(NamedTuple):
    """A sparse matrix [V, V] by rows, and its transpose: bounds [V + 1], columns [E] and weights [E] of both."""

    bounds: Tensor
    columns: Tensor
    weights: Tensor
    bounds_transposed: Tensor
    columns_transposed: Tensor
    weights_transposed: Tensor

    def repeat(self, n: int, V: int) -> "Adjacency":
        """Return the adjacency of n copies of the graphs, one for each step: [n V, n V]."""
        if n == 1:
            return self

        def by_rows(bounds: Tensor, columns: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            copy = torch.arange(n, device=bounds.device)[:, None]
            starts = (bounds[:-1] + copy * len(columns)).flatten()
            return torch.cat([starts, bounds[-1:] * n]), (columns + copy * V).flatten(), weights.repeat(n)

        return Adjacency(*by_rows(*self[:3]), *by_rows(*self[3:]))

    def sum_of_neighbours(self, x: Tensor) -> Tensor:
        """Return the weighted sum over the neighbours of each node, [V, F] -> [V, F], in fp32 or fp64, the types that a CPU has for it."""
        x = at_least_fp32(x)
        return product(*self, x) if torch.compiler.is_compiling() else Product.apply(*self, x)


class AttentionEdges(NamedTuple):
    """The edges [2, E] (from, to) without self-loops; each node gets one of these."""

    edges: Tensor

    def repeat(self, n: int, V: int) -> Tensor:
        """Return the edges of n copies of the graphs, one for each step, and then the self-loops: [2, n E + n V]."""
        copy = torch.arange(n, device=self.edges.device)[:, None]
        return torch.cat([(self.edges[:, None] + copy * V).flatten(1), torch.arange(n * V, device=copy.device).expand(2, -1)], 1)


def make_adjacency(edge_index: Tensor, V: int, conv_type: str, dtype: torch.dtype = torch.float32) -> Adjacency | AttentionEdges:
    """Return the edges [2, E] between V nodes in the form for a convolution."""
    kind = WEIGHTS[conv_type]
    if kind == "attention":
        return AttentionEdges(edge_index[:, edge_index[0] != edge_index[1]])
    weights = torch.ones(edge_index.shape[1], dtype=dtype, device=edge_index.device)
    if kind == "gcn":
        edge_index, weights = gcn_norm(edge_index, weights, V)
    elif kind == "sage":
        weights = 1 / degree(edge_index[1], V, dtype)[edge_index[1]]
    (sources, targets), weights = coalesce(edge_index, weights, V, sort_by_row=False)
    by_source = sources.argsort(stable=True)
    return Adjacency(
        *(bounds_of(targets, V), sources, weights),
        *(bounds_of(sources, V), targets[by_source], weights[by_source]),
    )


def bounds_of(rows: Tensor, V: int) -> Tensor:
    """Return where each of V rows begins among sorted entries, and the end: int64 [V + 1]."""
    bounds = torch.zeros(V + 1, dtype=torch.int64, device=rows.device)
    bounds[1:] = degree(rows, V, dtype=torch.int64).cumsum(0)
    return bounds


# ---- with the batch


def adder(conv_type: str) -> Any:
    """Return the function that gives a batch (graphs, ...) its adjacency for a convolution; a loader may send it to its processes."""
    return partial(add_adjacency, conv_type=conv_type)


def add_adjacency(batch: tuple[Any, ...], conv_type: str) -> tuple[Any, ...]:
    """Give the graphs of a batch their adjacency for a convolution in fp32, and return the batch."""
    graphs = batch[0]
    setattr(graphs, f"{WEIGHTS[conv_type]}_adjacency", make_adjacency(graphs.edge_index, len(graphs.x), conv_type))
    return batch


def adjacency_of(graphs: Data, conv_type: str, dtype: torch.dtype) -> Adjacency | AttentionEdges:
    """Return the adjacency that was loaded with a batch or, for a batch from elsewhere or in another type, one that is made now."""
    loaded = getattr(graphs, f"{WEIGHTS[conv_type]}_adjacency", None)
    if loaded is not None and (isinstance(loaded, AttentionEdges) or loaded.weights.dtype == dtype):
        return loaded
    return make_adjacency(graphs.edge_index, len(graphs.x), conv_type, dtype)


# ---- the product


def multiply(bounds: Tensor, columns: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    """Return the product of a sparse matrix with x [V, F]."""
    if x.is_cuda and torch.are_deterministic_algorithms_enabled():
        return multiply_in_order(bounds, columns, weights, x)
    matrix = torch.sparse_csr_tensor(bounds, columns, weights, (len(bounds) - 1, len(x)), check_invariants=False)
    with torch.autocast(x.device.type, enabled=False):
        return matrix @ x


def multiply_in_order(bounds: Tensor, columns: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    """Return the same product with the sum of each row in the order of its entries, at the cost of memory for [E, F].

    The algorithm that torch takes of cuSPARSE promises no order, and torch's deterministic mode does not know of it.
    """
    return segment(x.index_select(0, columns) * weights[:, None], bounds, "sum")


class Product(torch.autograd.Function):
    """The product of an adjacency with x [V, F]; its gradient is that with the transpose, which torch would have to make."""

    @staticmethod
    def forward(ctx: Any, *matrices_and_x: Tensor) -> Tensor:
        *matrices, x = matrices_and_x
        ctx.save_for_backward(*matrices[3:])
        return multiply(*matrices[:3], x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *[None] * 6, multiply(*ctx.saved_tensors, gradient)


@torch.library.custom_op("snnexp::adjacency_product", mutates_args=())
def product(bounds: Tensor, columns: Tensor, weights: Tensor, bounds_t: Tensor, columns_t: Tensor, weights_t: Tensor, x: Tensor) -> Tensor:
    """Return the same for torch.compile, which knows no sparse tensors: it sees this as one operation."""
    return multiply(bounds, columns, weights, x)


@product.register_fake
def _(bounds, columns, weights, bounds_t, columns_t, weights_t, x):
    return x.new_empty(bounds.shape[0] - 1, x.shape[1])


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    matrix, transposed = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    return *[None] * 6, product(*transposed, *matrix, gradient)


product.register_autograd(_backward, setup_context=_keep)
