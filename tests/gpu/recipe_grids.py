"""The grids of the kernels that each recipe launches, seen in a forward pass at its sizes on the pretended device."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_geometric.data import Data

from conftest import composed
from gpu.pretended_device import Device, failure, outside
from models.fake_cuda import put_on_fake_cuda
from snnexp.engine.arithmetic.auto import choose
from snnexp.engine.arithmetic.precision import resolve
from snnexp.parts import instantiate
from stays import batch_of, made_stays

IMAGES, EVENTS = {"in_channels": 3, "num_classes": 10}, {"in_channels": 2, "num_classes": 10}
GRAPHS = {"num_features": 28, "num_outputs": 2}
STAYS = {"num_variables": 60, "num_outputs": 1}

RECIPES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "seqset_vae_described": (STAYS, [400]),
    "sgt_zinc": (GRAPHS, [38, 80]),
    "spikformer_cifar10": (IMAGES, [3, 32, 32]),
    "spikformer_cifar10_dvs": (EVENTS, [2, 128, 128]),
    "spikformer_digits": (IMAGES, [3, 8, 8]),
    "spikformer_small": (IMAGES, [3, 32, 32]),
    "spiking_gnn_mutag": (GRAPHS, [28, 66]),
    "spiking_gnn_nci1": (GRAPHS, [111, 238]),
    "spiking_gnn_zinc": (GRAPHS, [38, 80]),
    "tet_cifar10": (IMAGES, [3, 32, 32]),
    "tet_cifar10_dvs": (EVENTS, [2, 48, 48]),
    "vrt_spike_baseline": ({"in_channels": 3, "spike_channels": 32}, [5, 256, 256]),
}
"""By recipe, what its data give the model, and the size of a sample: sets; nodes and edges of the largest graph; channels, rows, columns of
a picture; frames, rows, columns of a clip."""


def grids(recipe: str) -> dict[str, int]:
    """Return the largest grids of a training batch of a recipe and, of one for video, of a tile in its evaluation."""
    provided, size = RECIPES[recipe]
    settings = composed(f"experiment={recipe}", "dataset.root=nowhere" if provided is STAYS else "device=cuda")
    node = settings["model"]
    if "spike_channels" in provided:
        node |= {"depth": 2, "last_depth": 1, "groups": 2, "still_groups": 1}  # one layer of each kind
    model = outside(instantiate)(node, [], **(provided | ({"size": size[-1]} if "num_classes" in provided else {})))
    with FakeTensorMode(allow_non_fake_inputs=True) as tensors:
        device = Device(tensors)
        put_on_fake_cuda(model)
        precision = resolve(choose(settings, model, torch.device("cuda")).precision, torch.device("cuda"))
        with precision.autocast(), torch.no_grad(), device:
            model(*batch(settings, provided, size))
            if "spike_channels" in provided:
                model(*clips(1, settings["task"]["tile"], provided))
    return device.grids


def batch(settings: dict[str, Any], provided: dict[str, Any], size: list[int]) -> tuple[Any, ...]:
    """Return the input of the model for a batch of the recipe."""
    n = settings["batch_size"]
    if "spike_channels" in provided:
        return clips(n, size, provided)
    if provided is STAYS:
        return (outside(lambda: batch_of(made_stays(n, 60, longest=size[0])))().to("cuda"),)
    if provided is GRAPHS:
        nodes, edges = (n * count for count in size)
        x, ends = torch.empty(nodes, GRAPHS["num_features"], device="cuda"), torch.empty(2, edges, dtype=torch.int64, device="cuda")
        return (Data(x, ends, ptr=torch.empty(n + 1, dtype=torch.int64, device="cuda")),)
    times = (settings["T"],) if provided is EVENTS else ()
    return (torch.empty(*times, n, *size, device="cuda"),)


def clips(n: int, size: list[int], provided: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return n blurry clips of D frames, rows and columns, and their spikes."""
    d, *sides = size
    return tuple(torch.empty(n, d, provided[name], *sides, device="cuda") for name in ("in_channels", "spike_channels"))


def measured_grids() -> dict[str, dict[str, Any]]:
    """Return the largest grids of each recipe; of one that cannot be run, why, as `failed`."""
    found = {}
    for recipe in RECIPES:
        try:
            found[recipe] = grids(recipe)
        except Exception as error:  # which the test tells
            found[recipe] = {"failed": failure(error)}
    return found
