"""What a run computes in: the precision and memory layout that its configuration names or, where that says auto, the fastest measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snnexp.engine.arithmetic.layer_speed import KINDS, Speeds, speeds
from snnexp.engine.arithmetic.precision import computes_bf16
from snnexp.errors import UserError
from snnexp.rundir import read_json

OPEN = ("precision", "channels_last")
"""The keys that may be auto."""
GAIN = 1.1
"""bf16, and channels_last, are taken where they are so many times as fast: fp32 rounds less, and measurements have noise."""
SHARE = 0.1
"""A kind of layer counts if it has so large a part of the weights."""


@dataclass(frozen=True)
class Choice:
    """The precision (fp32, bf16, fp16) and the layout of four-dimensional weights, and how those that were open were chosen."""

    precision: str
    channels_last: bool
    open: tuple[str, ...] = ()  # the keys that were auto
    how: str = ""  # in words
    measured: tuple[Speeds, ...] = ()

    def record(self) -> dict[str, Any]:
        """What arithmetic.json says: the value of each key that was open, and why."""
        found = {speed.kind: {"gflops": speed.gflops, "when": speed.when} for speed in self.measured}
        return {key: getattr(self, key) for key in self.open} | {"how": self.how, "measured": found}

    def lay_out(self, model: nn.Module) -> None:
        """Give the weights of a model their layout."""
        if self.channels_last:
            for weight in model.parameters():
                if weight.dim() == 4:  # the format of five dimensions is another one
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def choose(settings: dict[str, Any], model: nn.Module, device: torch.device, earlier: Iterable[dict[str, Any]] = ()) -> Choice:
    """The choice for a model on a device; what is auto is as the first of `earlier` has it that knows, else as measured.

    On CUDA it is not measured: bf16 where the hardware has it, and channels_last.
    """
    wanted = {key: settings[key] for key in OPEN}
    left_open = tuple(key for key in OPEN if wanted[key] == "auto")
    sources = iter(earlier)
    while "auto" in wanted.values() and (known := next(sources, None)) is not None:
        wanted |= {key: value for key, value in known.items() if wanted[key] == "auto"}
    if "auto" not in wanted.values():
        return Choice(**wanted, open=left_open, how="as chosen before" if left_open else "")
    if device.type == "cuda":
        ruled = {"precision": "bf16" if computes_bf16(device) else "fp32", "channels_last": True}
        given = {key: value for key, value in wanted.items() if value != "auto"}
        return Choice(**ruled | given, open=left_open, how="by rule on CUDA, not measured")
    parts = shares(model)
    decisive = [kind for kind in parts if kind == "convolution" or wanted["precision"] == "auto"]  # a layout is convolutions' alone
    measured = tuple(speeds(kind) for kind in decisive)
    return Choice(*fastest(wanted["precision"], wanted["channels_last"], parts, measured), left_open, in_words(measured), measured)


def shares(model: nn.Module) -> dict[str, float]:
    """The share that each kind of layer has in the weights of a network; embeddings, which are looked up, are of no kind."""
    convolved = {id(m.weight) for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)}
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    sizes = dict.fromkeys(KINDS, 0)
    for weight in model.parameters():
        if id(weight) in convolved or weight.dim() > 3:
            sizes["convolution"] += weight.numel()
        elif weight.dim() == 2 and id(weight) not in looked_up:
            sizes["matmul"] += weight.numel()
    whole = sum(sizes.values())
    return {kind: size / whole for kind, size in sizes.items() if whole and size / whole >= SHARE}


def fastest(precision: str, channels_last: bool | str, parts: dict[str, float], measured: Iterable[Speeds]) -> tuple[str, bool]:
    """The precision and layout to take, each as given or, where it is "auto", by the speeds of the network's kinds of layer.

    A precision takes the sum over the kinds of their share by their speed, in the layout that it would get. The layout concerns
    convolutions alone.
    """
    by_kind = {speed.kind: speed for speed in measured}

    def cost(name: str, last: bool) -> float:
        rates = {kind: by_kind[kind].of(name, last) for kind in parts}
        return sum(share / rates[kind] for kind, share in parts.items()) if None not in rates.values() else float("inf")

    def layout(name: str) -> bool:
        if channels_last != "auto":
            return bool(channels_last)
        convolution = by_kind.get("convolution")
        rates = [convolution.of(name, last) or convolution.of("fp32", last) for last in (False, True)] if convolution else [1.0, 1.0]
        return rates[1] > GAIN * rates[0]

    if precision == "auto":
        plain, short = (cost(name, layout(name)) for name in ("fp32", "bf16"))
        precision = "bf16" if parts and GAIN * short < plain else "fp32"
    return precision, layout(precision)


def in_words(measured: Iterable[Speeds]) -> str:
    """What was measured, in a line; "" if there was nothing to."""
    told = [
        f"{speed.kind} {', '.join(f'{name} {value:.0f}' for name, value in speed.gflops.items())} (measured {speed.when[:10]})"
        for speed in measured
    ]
    return f"forward and backward on one thread in GFLOP/s: {'; '.join(told)}" if told else ""


def recorded(path: Path) -> dict[str, Any]:
    """The choice that a run has recorded.

    Raises: UserError if it is damaged.
    """
    content = read_json(path)
    content = content if isinstance(content, dict) else {}
    found = {key: content[key] for key in OPEN if key in content}
    if not found or found.get("precision", "fp32") not in ("fp32", "bf16") or not isinstance(found.get("channels_last", True), bool):
        raise UserError(f"{path} does not say what the run computes in. Remove it: the run's checkpoint says so too, if it has one.")
    return found


def of_checkpoint(saved: dict[str, Any]) -> dict[str, Any]:
    """What the run that wrote a checkpoint had chosen for the keys that were open."""
    return {key: saved["circumstances"][key] for key in OPEN if saved["args"][key] == "auto"}
