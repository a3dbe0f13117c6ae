"""Chooses the precision and the memory layout of a run: as configured or, where the configuration says auto, the fastest measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snnexp.engine.arithmetic.layer_speed import KINDS, Speeds, load_or_measure
from snnexp.engine.arithmetic.precision import NAMES, computes_bf16
from snnexp.errors import UserError
from snnexp.rundir import read_json

AUTO_KEYS = ("precision", "channels_last")
"""The keys that may be auto."""
OPEN = ("auto", "fp32_or_tf32")
"""The values that leave a key open: auto, and fp32 on a CPU but tf32 on a GPU that has it."""
GAIN = 1.1
"""bf16 and channels_last are taken only where they are at least this many times as fast: fp32 rounds less, and measurements are noisy."""
SHARE = 0.1
"""A kind of layer counts only if it has at least this fraction of the weights."""


@dataclass(frozen=True)
class Choice:
    """The precision, the layout of four-dimensional weights, and how those that were auto were chosen."""

    precision: str
    channels_last: bool
    auto_keys: tuple[str, ...] = ()  # the keys that were auto
    how: str = ""  # how they were chosen, in words
    measured: tuple[Speeds, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the content of arithmetic.json: the value of each key that was auto, and how it was chosen."""
        speeds = {speed.kind: {"gflops": speed.gflops, "when": speed.when} for speed in self.measured}
        return {key: getattr(self, key) for key in self.auto_keys} | {"how": self.how, "measured": speeds}

    def lay_out(self, model: nn.Module) -> None:
        """Give the weights of a model the chosen layout."""
        if self.channels_last:
            for weight in model.parameters():
                if weight.dim() == 4:  # five dimensions have another format
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def choose(settings: dict[str, Any], model: nn.Module, device: torch.device, earlier: Iterable[dict[str, Any]] = ()) -> Choice:
    """Return the choice for a model on a device; a key that is open is taken from the first of the `earlier` choices that has it.

    If none has it, the CPU is measured; on CUDA the rule is bf16 (or tf32), if the hardware has it, and channels_last.
    """
    wanted = {key: settings[key] for key in AUTO_KEYS}
    auto_keys = tuple(key for key in AUTO_KEYS if wanted[key] in OPEN)
    earlier = iter(earlier)
    while is_open(wanted) and (before := next(earlier, None)) is not None:
        wanted |= {key: value for key, value in before.items() if wanted[key] in OPEN}
    if "precision" in auto_keys and wanted["precision"] == "tf32" and device.type == "cpu":
        wanted["precision"] = "fp32"  # a run that began on a GPU
    if not is_open(wanted):
        return Choice(**wanted, auto_keys=auto_keys, how="as chosen before" if auto_keys else "")
    if device.type == "cuda":
        reduced = "tf32" if wanted["precision"] == "fp32_or_tf32" else "bf16"  # GPUs have both or neither
        rule = {"precision": reduced if computes_bf16(device) else "fp32", "channels_last": True}
        configured = {key: value for key, value in wanted.items() if value not in OPEN}
        return Choice(**rule | configured, auto_keys=auto_keys, how="by rule on CUDA, not measured")
    if wanted["precision"] == "fp32_or_tf32":
        wanted["precision"] = "fp32"
        if not is_open(wanted):
            return Choice(**wanted, auto_keys=auto_keys)
    shares = weight_shares(model)
    decisive = [kind for kind in shares if kind == "convolution" or wanted["precision"] == "auto"]  # only convolutions have a layout
    measured = tuple(load_or_measure(kind) for kind in decisive)
    fast = fastest(wanted["precision"], wanted["channels_last"], shares, measured)
    return Choice(*fast, auto_keys, describe_speeds(measured), measured)


def is_open(settings: dict[str, Any]) -> bool:
    """Return True if the settings leave the precision or the layout open."""
    return any(settings[key] in OPEN for key in AUTO_KEYS)


def weight_shares(model: nn.Module) -> dict[str, float]:
    """Return the fraction of the weights that each kind of layer has; embeddings do not count, because they are only looked up."""
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


def fastest(precision: str, channels_last: bool | str, shares: dict[str, float], measured: Iterable[Speeds]) -> tuple[str, bool]:
    """Return the precision and the layout, each as given or, where it is "auto", the faster one for the kinds of layer of a network.

    The cost of a precision is the sum over the kinds of share / speed, in the layout that the precision would get. The layout concerns
    convolutions only.
    """
    by_kind = {speed.kind: speed for speed in measured}

    def cost(name: str, last: bool) -> float:
        rates = {kind: by_kind[kind].of(name, last) for kind in shares}
        return sum(share / rates[kind] for kind, share in shares.items()) if None not in rates.values() else float("inf")

    def layout(name: str) -> bool:
        if channels_last != "auto":
            return bool(channels_last)
        convolution = by_kind.get("convolution")
        rates = [convolution.of(name, last) or convolution.of("fp32", last) for last in (False, True)] if convolution else [1.0, 1.0]
        return rates[1] > GAIN * rates[0]

    if precision == "auto":
        fp32, bf16 = (cost(name, layout(name)) for name in ("fp32", "bf16"))
        precision = "bf16" if shares and GAIN * bf16 < fp32 else "fp32"
    return precision, layout(precision)


def describe_speeds(measured: Iterable[Speeds]) -> str:
    """Return the measured speeds as a line of text; "" if there are none."""
    kinds = [
        f"{speed.kind} {', '.join(f'{name} {value:.0f}' for name, value in speed.gflops.items())} (measured {speed.when[:10]})"
        for speed in measured
    ]
    return f"forward and backward on one thread in GFLOP/s: {'; '.join(kinds)}" if kinds else ""


def read_record(path: Path) -> dict[str, Any]:
    """Return the choice that a run has recorded in arithmetic.json.

    Raises: UserError if the file is damaged.
    """
    content = read_json(path)
    content = content if isinstance(content, dict) else {}
    choice = {key: content[key] for key in AUTO_KEYS if key in content}
    if not choice or choice.get("precision", "fp32") not in NAMES or not isinstance(choice.get("channels_last", True), bool):
        raise UserError(f"{path} does not say what the run computes in. Remove it: the run's checkpoint says so too, if it has one.")
    return choice


def choice_in_checkpoint(saved: dict[str, Any]) -> dict[str, Any]:
    """Return what the run that wrote a checkpoint had chosen for the keys that were auto."""
    return {key: saved["circumstances"][key] for key in AUTO_KEYS if saved["args"][key] in OPEN}
