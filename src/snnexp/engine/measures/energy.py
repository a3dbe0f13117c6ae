"""Counts the synaptic operations of a forward pass, and the energy of its arithmetic, with SpikingJelly's counters and one CONVENTION."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.op_counter import DispatchCounterMode, MACCounter, SynOpCounter
from spikingjelly.activation_based.op_counter.base import BaseCounter
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.weak import WeakIdKeyDictionary

MAC_PJ, AC_PJ = 4.6, 0.9
"""The energy in pJ of a multiply-accumulate and of an accumulate, 32-bit floating point in 45 nm (Horowitz, ISSCC 2014)."""
LEVELS = 16
"""The most equally spaced levels above 0 that spikes may have: a 4x4 mean or a dozen residual additions produce so many."""

CONVENTION = (
    f"An estimate: 45 nm, {MAC_PJ} pJ per MAC and {AC_PJ} pJ per AC; the arithmetic of convolutions, matrix products and sums over edges "
    "and nodes, without memory traffic, neuron dynamics, normalisation, activations, pooling of images and losses; measured on real "
    "samples, per sample, all T steps together. An operation is spike-driven if an operand that is no weight holds spikes: 0 and 1 only "
    f"or, once a spiking neuron has fired, 0 and at most {LEVELS} equally spaced positive levels, as pooled or added spikes have. It then "
    "costs one AC for each of its MACs whose spike operands are not 0 (synaptic_operations; in a convolution: fraction of inputs that "
    "are not 0 x MACs); any other costs its dense MACs (macs). Sums over edges and nodes: of spikes one AC per spike "
    "(synaptic_operations), of numbers times a weight one MAC each (macs), of other numbers one AC each (additions). dense_macs: the "
    "MACs of the same operations without sparsity. spikingjelly: SpikingJelly's SynOpCounter and MACCounter on the same products, to "
    "which spikes are 0 and 1 only, and which leave sums over edges out."
)

HIDDEN = ("rnn", "attention", "deform_conv", "fft")
"""Parts of the names of operations that do much arithmetic and are not counted here."""

aten = torch.ops.aten


def energy_uj(macs: float, acs: float) -> float:
    """Return the energy of these numbers of operations, in uJ."""
    return (MAC_PJ * macs + AC_PJ * acs) * 1e-6


def holds_spikes(x: Tensor, graded: bool) -> bool:
    """Return True if all values of a tensor are 0 or 1 or, if `graded`, 0 or one of at most LEVELS equally spaced positive levels."""
    if x.dtype == torch.bool or bool(((x == 0) | (x == 1)).all()):
        return True
    if not graded or not bool(((x >= 0) & (x < math.inf)).all()):
        return False
    # A subset rules out most tensors; if it lacks a level that makes the spacing finer, the whole tensor decides.
    for subset in (x.flatten()[:: max(1, x.numel() // 4096)], x):
        unit = spacing(torch.unique(subset))
        if unit is None:
            return False
        if on_grid(x, unit):
            return True
    return False


def spacing(values: Tensor) -> float | None:
    """Return the widest spacing of levels from 0 up that contains all `values` (sorted, none negative); None if it needs over LEVELS."""
    largest = float(values[-1])
    units = [largest / levels if largest else 1.0 for levels in range(1, LEVELS + 1)] if len(values) <= LEVELS + 1 else []
    return next((unit for unit in units if on_grid(values, unit)), None)


def on_grid(x: Tensor, unit: float) -> bool:
    """Return True if all of `x` are among the first LEVELS multiples of `unit` or 0, up to the rounding of its type."""
    steps = x.float() / unit
    tolerance = max(1e-4, 2 * torch.finfo(x.dtype).eps) if x.is_floating_point() else 1e-4
    return bool(((steps - steps.round()).abs() <= tolerance * steps).all() & (steps.amax() < LEVELS + 0.5))


class Operations(BaseCounter):
    """Counts the operations of a model by CONVENTION; the counts per module, which BaseCounter keeps, are of `dense_macs`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.synaptic_operations = self.additions = self.macs = 0.0
        self._parameters = {p.untyped_storage().data_ptr(): p for p in model.parameters()}
        self.begin()
        self.rules: dict[Any, Callable] = {
            **{op.default: self._product(0) for op in (aten.mm, aten.bmm, aten.mv)},
            **{op.default: self._product(1) for op in (aten.addmm, aten.baddbmm, aten.addmv, aten._sparse_addmm)},
            aten.convolution.default: self._convolution,
            aten.mul.Tensor: self._note_product,
            aten._to_copy.default: self._note_cast,
            aten.sum.dim_IntList: self._dot,
            **{op.default: self._messages for op in (aten.scatter_add, aten.scatter_add_, aten.index_add, aten.index_add_)},
            **{op.two: self._messages for op in (aten.scatter_reduce, aten.scatter_reduce_)},
            aten.segment_reduce.default: self._segments,
        }

    def begin(self) -> None:
        """Prepare for a forward pass."""
        self.graded = False  # whether a spiking neuron has fired in this pass
        self._weights = dict(self._parameters)  # by the address of their storage; casts are kept so that no address is reused
        self._products = WeakIdKeyDictionary()

    def _product(self, first: int) -> Callable:
        """Return the rule for a matrix product whose two factors begin at argument `first`."""

        def rule(args: tuple, kwargs: dict, out: Tensor) -> int:
            x, y = args[first : first + 2]
            if x.layout != torch.strided:
                return self._adjacency(x, y)
            if y.layout != torch.strided:
                return self._adjacency(y.to_sparse_coo().t(), x.t())
            if y.dim() < x.dim():
                y = y.unsqueeze(-1)
            dense = x.numel() * y.shape[-1]
            spikes = [self._activation(operand) and holds_spikes(operand, self.graded) for operand in (x, y)]
            if not any(spikes):
                self.macs += dense
                return dense
            # For each k, count the products x[i, k] y[k, j] whose spike operands are not 0.
            left = (x != 0).sum(-2) if spikes[0] else torch.full_like(x[..., 0, :], x.shape[-2], dtype=torch.int64)
            right = (y != 0).sum(-1) if spikes[1] else y.shape[-1]
            self.synaptic_operations += float((left * right).sum())
            return dense

        return rule

    def _convolution(self, args: tuple, kwargs: dict, out: Tensor) -> int:
        x, weight, transposed = args[0], args[1], args[6]
        dense = (x if transposed else out).numel() * weight[0].numel()
        if holds_spikes(x, self.graded):
            self.synaptic_operations += dense * int(x.count_nonzero()) / x.numel()
        else:
            self.macs += dense
        return dense

    def _adjacency(self, matrix: Tensor, x: Tensor) -> int:
        """Count a sparse matrix [M, V] of edges times the features [V, F] of nodes."""
        edges = matrix.to_sparse_coo()
        sources, count = edges._indices()[1], edges._nnz() * x.shape[1]
        return self._sum(x, count, lambda: (x != 0).sum(1)[sources].sum(), weighted=not bool((edges._values() == 1).all()))

    def _messages(self, args: tuple, kwargs: dict, out: Tensor) -> int:
        x, reduction = args[3], args[4] if len(args) > 4 else "sum"
        return self._reduction(x, reduction) if x.dim() > 1 else 0  # one dimension: degrees of nodes

    def _segments(self, args: tuple, kwargs: dict, out: Tensor) -> int:
        return self._reduction(*args[:2])

    def _reduction(self, x: Tensor, reduction: str) -> int:
        return self._sum(x, x.numel(), x.count_nonzero, weighted=x in self._products) if reduction in ("sum", "mean") else 0

    def _sum(self, x: Tensor, count: int, spikes: Callable[[], Tensor], weighted: bool) -> int:
        """Count a sum of `count` numbers over edges or nodes; `spikes` counts the spikes among them if x holds spikes."""
        if holds_spikes(x, self.graded):
            self.synaptic_operations += float(spikes())
        elif weighted:
            self.macs += count
        else:
            self.additions += count
        return count if weighted else 0

    def _note_product(self, args: tuple, kwargs: dict, out: Tensor) -> int:
        if isinstance(args[1], Tensor):
            self._products[out] = True
        return 0

    def _note_cast(self, args: tuple, kwargs: dict, out: Tensor) -> int:
        """Note that a weight cast by autocast is still a weight."""
        if args[0].layout == torch.strided and not self._activation(args[0]):
            self._weights[out.untyped_storage().data_ptr()] = out
        return 0

    def _dot(self, args: tuple, kwargs: dict, out: Tensor) -> int:
        """Count a sum of products, a scalar product as in the attention of a GAT."""
        count = args[0].numel() if args[0] in self._products else 0
        self.macs += count
        return count

    def _activation(self, x: Tensor) -> bool:
        # F.linear transposes the weight: it is another tensor then, with the same storage.
        return x.untyped_storage().data_ptr() not in self._weights


class EnergyMeter:
    """Counts the operations of a model's forward passes, by CONVENTION and with SpikingJelly's own counters."""

    def __init__(self, model: nn.Module) -> None:
        self.neurons = [module for module in model.modules() if isinstance(module, neuron.BaseNode)]
        self.operations = Operations(model)
        self.reference = {"synaptic_operations": SynOpCounter(), "macs": MACCounter()}
        self.reference["macs"].rules.pop(aten.native_batch_norm.default)  # not synaptic; at inference it is part of the convolution
        for counter in self.reference.values():
            counter.rules = {op: _dense_only(rule) for op, rule in counter.rules.items()}
        self.samples = 0
        self.not_counted: set[str] = set()

    @contextmanager
    def forward(self, samples: int) -> Iterator[None]:
        """Count what is computed in the context, one forward pass of `samples` samples."""
        self.operations.begin()
        handles = [module.register_forward_hook(self._has_fired) for module in self.neurons]
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # fused attention would hide its matrix products
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)  # a sum in a fixed order would hide the product with a sparse matrix
        mode = DispatchCounterMode([self.operations, *self.reference.values()])
        try:
            with sdpa_kernel(SDPBackend.MATH), mode:
                yield
            self.not_counted |= {name for name in mode.get_unsupported(self.operations) if any(word in name for word in HIDDEN)}
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.backends.mha.set_fastpath_enabled(fast)
            for handle in handles:
                handle.remove()
        self.samples += samples

    def estimate(self) -> dict[str, Any]:
        """Return operations and energy (uJ) per sample, the names of HIDDEN operations that occurred, and the convention in words."""
        operations = self.operations
        counts = {
            "synaptic_operations": operations.synaptic_operations,
            "additions": operations.additions,
            "macs": operations.macs,
            "dense_macs": operations.get_total(),
            "energy_uJ": energy_uj(operations.macs, operations.synaptic_operations + operations.additions),
        }
        reference = {name: counter.get_total() for name, counter in self.reference.items()}
        reference["energy_uJ"] = energy_uj(reference["macs"], reference["synaptic_operations"])
        return {
            **{name: value / self.samples for name, value in counts.items()},
            "spikingjelly": {name: value / self.samples for name, value in reference.items()},
            "not_counted": sorted(self.not_counted),
            "convention": CONVENTION,
        }

    def _has_fired(self, *_: object) -> None:
        self.operations.graded = True


def _dense_only(rule: Callable) -> Callable:
    """Return a rule of SpikingJelly's that skips sparse matrices, whose elements it cannot compare."""

    def guarded(args: tuple, kwargs: dict, out: Tensor) -> int:
        return 0 if any(isinstance(arg, Tensor) and arg.layout != torch.strided for arg in args) else rule(args, kwargs, out)

    return guarded
