"""What a run with pruning leaves, written by hand: pruning.json and spike_maps.npz."""

import json
from pathlib import Path

import numpy as np

from analysis.run_files import make

SPIKFORMER = {  # the 4-384 one: units, heads or not, side of a map
    **{f"sps.stages.{i}.lif": (48 * 2**i, "channels", 32 if i < 2 else 16) for i in range(3)},
    **{f"blocks.{i}.attention": (12, "heads", 8) for i in range(4)},
    **{f"blocks.{i}.mlp.lif1": (1536, "channels", 8) for i in range(4)},
    "embedding": (384, "channels", 8),
}
VGGSNN = {
    f"features.{n}.lif": (size, "channels", side)
    for n, size, side in zip((0, 1, 3, 4, 6, 7, 9, 10), (64, 128, 256, 256, *[512] * 4), (48, 48, 24, 24, 12, 12, 6, 6), strict=True)
}
SMALL = {"a.0.lif": (8, "channels", 4), "a.1.lif": (20, "channels", 2), "b.attention": (4, "heads", 2)}


def plausible(units: int, place: int, seed: int) -> np.ndarray:
    """Scores as mean spike rates are: most low, few high, some units silent."""
    rates = np.random.default_rng(100 * seed + place).beta(1.6, 14 + 3 * (place % 4), units)
    rates[: units // 25 if units > 30 else 0] = 0
    return rates


def step(epoch, ratio, layers, there, scores=plausible, seed=0, parameters=None):
    """One step of pruning.json that cuts each layer to (1 - ratio) of its size; `there` = the units of each layer before it."""
    record = {"epoch": epoch, "ratio": ratio, "parameters": parameters, "layers": {}}
    for place, (name, (size, of, _)) in enumerate(layers.items()):
        units, values = there[name], scores(size, place, seed)[there[name]]
        gone = max(0, min(int(ratio * size), size - 1) - (size - len(units)))
        kept = sorted(units[i] for i in np.argsort(values, kind="stable")[gone:])
        record["layers"][name] = {"of": of, "size": size, "units": list(units), "scores": values.tolist(), "kept": [int(u) for u in kept]}
        there[name] = [int(unit) for unit in kept]
    return record


def stage(epoch, share, accuracy, parameters=1_000_000, test=True):
    return {
        "epoch": epoch, "parameters": round(parameters * share), "macs": 2e9 * share, "synaptic_operations": 3e8 * share,
        "energy_uJ": 400.0 * share, "forward_ms": 100 * share, "step_ms": 300 * share,
        "val": {"Loss": 2 - accuracy / 50, "Acc1": accuracy - 1}, "test": {"Loss": 2 - accuracy / 50, "Acc1": accuracy} if test else {},
    }  # fmt: skip


def pruning(layers=SMALL, ratio=0.5, criterion="spike_map", source="/runs/dense/checkpoints/checkpoint_best.pth", epochs=10,
            ratios=(), scores=plausible, seed=0, accuracy=90.0, parameters=1_000_000, **changes):  # fmt: skip
    """The content of pruning.json: one step, or one for each of `ratios`."""
    there = {name: list(range(size)) for name, (size, _, _) in layers.items()}
    steps = [
        step(3 * n, each, layers, there, scores, seed, round(parameters * (1 - each)))
        for n, each in enumerate(ratios or (ratio,), bool(ratios))
    ]
    stages = {"dense": stage(40, 1.0, accuracy, parameters), "pruned": stage(40, 1 - ratio, accuracy * (1 - ratio), parameters)}
    stages["final"] = stage(epochs, 1 - ratio, accuracy - 2 * ratio, parameters)
    if source is None:
        del stages["pruned"]
        stages["dense"]["epoch"] = 0
    content = {
        "source": source, "criterion": criterion, "score": "mean spike rate", "ratio": ratio, "ranking": "per_layer", "round_to": 1,
        "floor": 0.1, "calibration": {"split": "train", "samples": 100}, "steps": steps, "stages": stages,
        "speedup": {"forward": 1.7, "step": 1.62, "pairs": 5, "batch_size": 32},
    }  # fmt: skip
    return content | changes


def maps(layers=SMALL, T=4, scores=plausible, seed=0):
    """The arrays of spike_maps.npz: spikes where a blob lies, as often as the units' scores say."""
    generator = np.random.default_rng(seed)
    arrays = {"T": np.array(T)}
    for place, (name, (size, of, side)) in enumerate(layers.items()):
        y, x = np.mgrid[:side, :side] / side
        centres = generator.uniform(0.2, 0.8, (2, size, 1, 1))
        blobs = np.exp(-((x - centres[0]) ** 2 + (y - centres[1]) ** 2) / 0.08)
        rate = np.clip(3 * scores(size, place, seed)[:, None, None] * (0.2 + 2 * blobs), 0, 1)
        channels = 32 if of == "heads" else 1
        arrays[name] = (generator.binomial(T * channels, rate) / channels).astype(np.float16)
    return arrays


def pruned(path: Path, layers=SMALL, state="finished", with_maps=True, **settings) -> Path:
    """A run with pruning."""
    run = make(path, state=state, task="classification")
    content = pruning(layers, **settings)
    if state != "finished":
        del content["stages"]["final"]
    (run / "pruning.json").write_text(json.dumps(content))
    if with_maps:
        np.savez(run / "spike_maps.npz", **maps(layers, seed=settings.get("seed", 0)))
    return run


def swept(folder: Path, ratio=0.3, seed=0, criterion="spike_map", accuracy=90.0, settings=None, **more) -> Path:
    """A run of a sweep, in a directory that Hydra would name so, whose config has its seed, ratio and other `settings`."""
    run = pruned(folder / f"{len(list(folder.glob('*')))}_{criterion},pruner.ratio={ratio},seed={seed}", with_maps=False, ratio=ratio,
                 criterion=criterion, source=f"/runs/dense{seed}/checkpoints/checkpoint_best.pth", accuracy=accuracy, **more)  # fmt: skip
    change(run, "config.json", seed=seed, prune_from=f"/runs/dense{seed}", pruner={"ratio": ratio, "criterion": {"name": criterion}})
    change(run, "config.json", **(settings or {}))
    return run


def change(run: Path, file: str, **changes) -> None:
    """Change top-level keys of a JSON file of a run."""
    (run / file).write_text(json.dumps(json.loads((run / file).read_text()) | changes))
