"""Synaptic operations of a forward pass and the energy of its arithmetic, counted by SpikingJelly's machinery under a named convention."""

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
"""Picojoule of a multiply-accumulate and of an accumulate, 32-bit floating point in 45 nm (Horowitz, ISSCC 2014)."""
LEVELS = 16
"""Equally spaced levels above 0 that an operand may have and still hold spikes: what a 4x4 mean or a dozen residuals make of them."""

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
"""What the name of an operation holds that does much arithmetic in a form not counted here."""

aten = torch.ops.aten


def energy_uj(macs: float, acs: float) -> float:
    """Microjoule of that many operations."""
    return (MAC_PJ * macs + AC_PJ * acs) * 1e-6


def holds_spikes(x: Tensor, graded: bool) -> bool:
    """Whether a tensor is 0 and 1 throughout or, if `graded`, 0 and few equally spaced positive levels."""
    if x.dtype == torch.bool or bool(((x == 0) | (x == 1)).all()):
        return True
    if not graded or not bool(((x >= 0) & (x < math.inf)).all()):
        return False
    # A sample refuses most tensors; where it lacks a level that makes the spacing finer, the whole tensor decides.
    for seen in (x.flatten()[:: max(1, x.numel() // 4096)], x):
        unit = spacing(torch.unique(seen))
        if unit is None:
            return False
        if on_grid(x, unit):
            return True
    return False


def spacing(values: Tensor) -> float | None:
    """The widest spacing of levels from 0 on among which all `values` (sorted, none negative) are, or None if it takes more than LEVELS."""
    largest = float(values[-1])
    units = [largest / levels if largest else 1.0 for levels in range(1, LEVELS + 1)] if len(values) <= LEVELS + 1 else []
    return next((unit for unit in units if on_grid(values, unit)), None)


def on_grid(x: Tensor, unit: float) -> bool:
    """Whether all of `x` lies on the first LEVELS multiples of `unit`, to the rounding of its type."""
    steps = x.float() / unit
    tolerance = max(1e-4, 2 * torch.finfo(x.dtype).eps) if x.is_floating_point() else 1e-4
    return bool(((steps - steps.round()).abs() <= tolerance * steps).all() & (steps.amax() < LEVELS + 0.5))


class Operations(BaseCounter):
    """Adds up the operations of a model by CONVENTION; its record per module is that of `dense_macs`."""

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
        """Begin a forward pass."""
        self.graded = False  # whether a spiking neuron has fired in it
        self._weights = dict(self._parameters)  # by the address of their storage; holding the casts keeps their addresses theirs
        self._products = WeakIdKeyDictionary()

    def _product(self, first: int) -> Callable:
        """The rule of a matrix product whose factors are the arguments from `first` on."""

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
            # Products x[i, k] y[k, j] whose spike operands are not 0, counted for each k.
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
        """A sparse matrix [M, V] of edges times the features [V, F] of nodes."""
        edges = matrix.to_sparse_coo()
        sources, count = edges._indices()[1], edges._nnz() * x.shape[1]
        return self._sum(x, count, lambda: (x != 0).sum(1)[sources].sum(), weighted=not bool((edges._values() == 1).all()))

    def _messages(self, args: tuple, kwargs: dict, out: Tensor) -> int:
        x, reduction = args[3], args[4] if len(args) > 4 else "sum"
        return self._reduction(x, reduction) if x.dim() > 1 else 0  # one number each: degrees of nodes

    def _segments(self, args: tuple, kwargs: dict, out: Tensor) -> int:
        return self._reduction(*args[:2])

    def _reduction(self, x: Tensor, reduction: str) -> int:
        return self._sum(x, x.numel(), x.count_nonzero, weighted=x in self._products) if reduction in ("sum", "mean") else 0

    def _sum(self, x: Tensor, count: int, spikes: Callable[[], Tensor], weighted: bool) -> int:
        """Sums of `count` numbers over edges or nodes, as many of them spikes as `spikes` counts if x holds spikes."""
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
        """A weight cast by autocast is still a weight."""
        if args[0].layout == torch.strided and not self._activation(args[0]):
            self._weights[out.untyped_storage().data_ptr()] = out
        return 0

    def _dot(self, args: tuple, kwargs: dict, out: Tensor) -> int:
        """A sum over products is a scalar product: the attention of a GAT."""
        count = args[0].numel() if args[0] in self._products else 0
        self.macs += count
        return count

    def _activation(self, x: Tensor) -> bool:
        # F.linear transposes the weight: another tensor, the same storage.
        return x.untyped_storage().data_ptr() not in self._weights


class EnergyMeter:
    """Counts the operations of forward passes of one model."""

    def __init__(self, model: nn.Module) -> None:
        self.neurons = [module for module in model.modules() if isinstance(module, neuron.BaseNode)]
        self.operations = Operations(model)
        self.theirs = {"synaptic_operations": SynOpCounter(), "macs": MACCounter()}
        self.theirs["macs"].rules.pop(aten.native_batch_norm.default)  # no synapses; at inference it is part of the convolution
        for counter in self.theirs.values():
            counter.rules = {op: _dense_only(rule) for op, rule in counter.rules.items()}
        self.samples = 0
        self.not_counted: set[str] = set()

    @contextmanager
    def forward(self, samples: int) -> Iterator[None]:
        """Count what is computed inside, one forward pass of `samples` samples."""
        self.operations.begin()
        handles = [module.register_forward_hook(self._has_fired) for module in self.neurons]
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # fused attention would hide its matrix products
        mode = DispatchCounterMode([self.operations, *self.theirs.values()])
        try:
            with sdpa_kernel(SDPBackend.MATH), mode:
                yield
            self.not_counted |= {name for name in mode.get_unsupported(self.operations) if any(word in name for word in HIDDEN)}
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for handle in handles:
                handle.remove()
        self.samples += samples

    def estimate(self) -> dict[str, Any]:
        """Operations and microjoule per sample; `not_counted` names operations of weight without a rule here; the convention in words."""
        ours, theirs = self.operations, {name: counter.get_total() for name, counter in self.theirs.items()}
        counts = {
            "synaptic_operations": ours.synaptic_operations,
            "additions": ours.additions,
            "macs": ours.macs,
            "dense_macs": ours.get_total(),
            "energy_uJ": energy_uj(ours.macs, ours.synaptic_operations + ours.additions),
        }
        theirs["energy_uJ"] = energy_uj(theirs["macs"], theirs["synaptic_operations"])
        return {
            **{name: value / self.samples for name, value in counts.items()},
            "spikingjelly": {name: value / self.samples for name, value in theirs.items()},
            "not_counted": sorted(self.not_counted),
            "convention": CONVENTION,
        }

    def _has_fired(self, *_: object) -> None:
        self.operations.graded = True


def _dense_only(rule: Callable) -> Callable:
    """A rule of SpikingJelly's that is spared sparse matrices, whose elements it cannot compare."""

    def guarded(args: tuple, kwargs: dict, out: Tensor) -> int:
        return 0 if any(isinstance(arg, Tensor) and arg.layout != torch.strided for arg in args) else rule(args, kwargs, out)

    return guarded
