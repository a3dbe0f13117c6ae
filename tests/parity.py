"""What the authors' own code computed from weights that anyone recomputes, and the way from their names to ours."""

import importlib.util
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from snnexp.contracts import DataSet
from snnexp.engine.weights import transfer
from snnexp.models.neurons import LIFNode

FOLDER = Path(__file__).parents[2] / "shared/parity"
THIRDS = {
    "q+kv": {"q": slice(0, 1), "kv": slice(1, 3)},
    "query+key+value": {"query": slice(0, 1), "key": slice(1, 2), "value": slice(2, 3)},
}
"""Layers that upstream keeps in one, by the word in the new name: which thirds of it belong to which of ours."""


def reader() -> ModuleType:
    """The fixtures' own reader; skips where they are not."""
    if not (FOLDER / "fixture.py").exists():
        pytest.skip(f"what upstream computes ({FOLDER}) is not on this machine")
    found = importlib.util.spec_from_file_location("fixture", FOLDER / "fixture.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


class Upstream:
    """One published model: its weights, inputs (float64) and numbers."""

    def __init__(self, name: str) -> None:
        self.fixture = reader()
        self.spec, self.data = self.fixture.load(name)
        self.inputs = {key: torch.from_numpy(array) for key, array in self.fixture.inputs(self.spec, self.data).items()}
        self.arguments = self.spec["model"]["snnexp"]["arguments"]
        self.without = self.spec["model"]["snnexp"].get("rename_without", "")

    def number(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.data[key]))

    def places(self, name: str) -> dict[str, slice]:
        """Of an entry of theirs our names, each with its thirds of it (all: the whole); none if we have no such entry."""
        ours = self.fixture.renamed(name, self.spec["rename"])
        if ours is None:
            return {}
        ours = ours.removeprefix(self.without)
        cut = next((word for word in THIRDS if word in ours), None)
        return {ours: slice(0, 3)} if cut is None else {ours.replace(cut, own): part for own, part in THIRDS[cut].items()}

    def weights(self) -> dict[str, Tensor]:
        """All entries of theirs under our names, by the fixture's own table."""
        out = {}
        for name, array in self.fixture.weights(self.spec).items():
            entry = torch.from_numpy(array)
            for ours, part in self.places(name).items():
                whole = part == slice(0, 3)
                out[ours] = entry if whole else torch.cat(entry.chunk(3)[part])
        return out

    def save(self, folder: Path, which: int = 0) -> Path:
        """A file as their code saves it, by one of the ways in which it does."""
        path = folder / self.spec["saved_as"][which]["file"]
        torch.save(self.fixture.content(self.spec, torch.from_numpy, which), path)
        return path

    def fill(self, model: nn.Module, which: int = 0) -> nn.Module:
        """The model in float64, in evaluation, with all their weights, as `init_from` reads them from such a file."""
        with TemporaryDirectory() as folder:
            path = self.save(Path(folder), which)
            _, record = transfer.transfer(model.double().eval(), str(path), data=DataSet(), partial=False, arguments={})
        assert record["not_placed"] == record["as_initialised"] == []
        return model

    def differences(self, got: dict[str, Tensor]) -> dict[str, float]:
        """The largest absolute difference of each thing that was computed."""
        rows = self.fixture.compare(self.data, {key: value.detach().numpy() for key, value in got.items()})
        return {key: difference for key, difference, _ in rows}

    def gradient_norms(self, model: nn.Module) -> Tensor:
        """As `grad_norm`: 0 in the place of parameters that take no part."""
        ours = dict(model.named_parameters())

        def norm(name: str) -> float:
            parts = [ours[own].grad for own in self.places(name)]
            return sum((part.square().sum() for part in parts if part is not None), torch.zeros(())).sqrt().item()

        return torch.tensor([norm(name) for name in self.spec["parameters"]], dtype=torch.float64)

    def largest_gradient_difference(self, model: nn.Module) -> float:
        """Of `gradient_norms`, in units of the largest norm."""
        wanted = self.number("grad_norm").nan_to_num()
        return ((self.gradient_norms(model) - wanted).abs().max() / wanted.max()).item()

    def buffer_norms(self, model: nn.Module) -> Tensor:
        """As `buffer_norm`."""
        ours = dict(model.named_buffers())
        return torch.stack([ours[own].norm() for name in self.spec["buffers"] for own in self.places(name)])


@contextmanager
def firing(model: nn.Module, of_steps: bool = False):
    """The share of outputs that are not 0 of each LIF in the order in which they run (`of_steps`: [layers, T]), as a function."""
    seen: list[Tensor] = []

    def keep(node: LIFNode, inputs: tuple, spikes: Tensor) -> None:
        active = (spikes != 0).double()
        seen.append(active.flatten(1).mean(1) if of_steps else active.mean())

    handles = [module.register_forward_hook(keep) for module in model.modules() if isinstance(module, LIFNode)]
    try:
        yield lambda: torch.stack(seen)
    finally:
        for handle in handles:
            handle.remove()


def trained(upstream: Upstream, model: nn.Module, run: Callable[[], tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """One step of training by `run`, which gives loss and output: these, rates and norms of running statistics."""
    functional.reset_net(model.train())
    with firing(model) as rates:
        loss, output = run()
    loss.backward()
    return {"train_out": output, "train_loss": loss, "train_rate": rates(), "buffer_norm": upstream.buffer_norms(model)}
