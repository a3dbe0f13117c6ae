"""Run directories as the runner leaves them, written file by file."""

import json
import math
from pathlib import Path

import numpy as np

GNN = ["gnn_model.lif1", "gnn_model.lif2", "output_mlp.0"]
VGG = [f"features.{n}.lif" for n in (0, 1, 3, 4, 6, 7, 9, 10)]


def by_step(rates):
    return {f"T{t}": float(rate) for t, rate in enumerate(rates)}


def rates(layers, T, fraction=0.0):
    """A rate for each layer and step, that falls with the fraction of the training done."""
    return {layer: (0.1 + 0.02 * n + 0.01 * np.arange(T)) * (1 - 0.3 * fraction) for n, layer in enumerate(layers)}


def make(path: Path, *, layers=GNN, T=4, epochs=5, spikes=True, state="finished", task="regression", **changes) -> Path:
    """A run with a metrics log; `spikes` adds the epochs' rates to it, a finished one has a result; `changes` go into result.json."""
    (path / "logs").mkdir(parents=True)
    model, dataset = ("spiking_gnn", "zinc") if task == "regression" else ("vggsnn", "digits_dvs")
    config = {"T": T, "lr": 1e-3, "seed": 0, "batch_size": 128, "epochs": epochs, "monitor": None, "model": {"T": T}}
    (path / "config.json").write_text(json.dumps(config | {"choices": {"model": model, "dataset": dataset}}))
    status = {"state": state, "epoch": epochs, "epochs": epochs, "started": "2026-01-01T00:00:00+00:00", "host": "elsewhere"}
    (path / "status.json").write_text(json.dumps(status))
    metric, rows = ("MAE" if task == "regression" else "Acc1"), []
    for epoch in range(1, epochs + 1):
        f = epoch / epochs
        value = math.exp(-f) if task == "regression" else 100 * (1 - math.exp(-2 * f))
        row = {"epoch": epoch, "step": 10 * epoch, "Train/Loss": math.exp(-2 * f), "Val/Loss": math.exp(-f), "LR": 1e-3 * (1 - f)}
        row |= {f"Train/{metric}": value, f"Val/{metric}": value}
        rows.append(row | ({f"Spikes/{layer}": list(map(float, r)) for layer, r in rates(layers, T, f).items()} if spikes else {}))
    (path / "logs/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if state == "finished":
        result = {
            "best": {"epoch": epochs, "metric": f"Val/{metric}", "value": rows[-1][f"Val/{metric}"]}, "split": "test",
            "test": {"Loss": 0.4, metric: value}, "protocol": "80/10/10", "parameters": 134401, "wall_time_s": 61.0,
            "samples_per_s": 941.2, "precision": "fp32",
        }  # fmt: skip
        (path / "result.json").write_text(json.dumps(result | changes))
    return path


def activity(layers=GNN, units=8):
    """What Activity.summary() says."""
    each = {"rate": 0.1, "rate_per_step": [0.1, 0.1], "units": units, "dead": 1, "saturated": 0}
    energy = {
        "synaptic_operations": 553_996_392.0, "additions": 4160.0, "macs": 10_616_832.0, "dense_macs": 5_446_619_136.0,
        "energy_uJ": 547.4, "not_counted": [], "convention": "words",
        "spikingjelly": {"synaptic_operations": 204_297_792.0, "macs": 1_709_494_272.0, "energy_uJ": 8047.5},
    }  # fmt: skip
    return {"split": "test", "samples": 256, "layers": dict.fromkeys(layers, each), "energy": energy}


def add_units(path: Path, layers=GNN, T=4, units=100, name="test_spikes.npz") -> dict[str, np.ndarray]:
    """test_spikes.npz; the second layer has 83 dead units, the third 20 saturated ones."""
    generator = np.random.default_rng(0)
    of_units = {layer: generator.uniform(0.01, 0.5, (T, units)).astype(np.float32) for layer in layers}
    if len(layers) > 2:
        of_units[layers[1]][:, :83] = 0
        of_units[layers[2]][:, -20:] = 1
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    np.savez(path / name, **of_units)
    return of_units


def statistics(layers=GNN, T=4, forwards=None):
    """The documented JSON: of every forward, or of the latest."""
    head = {"model_type": "GCN", "num_timesteps": T}
    if forwards is None:
        return head | {"latest_forward": {layer: by_step(r) for layer, r in rates(layers, T).items()}}
    every = [rates(layers, T, n / forwards) for n in range(forwards)]
    steps = {layer: [{"forward_idx": n, "timesteps": by_step(r[layer])} for n, r in enumerate(every)] for layer in layers}
    means = {layer: by_step(np.mean([r[layer] for r in every], axis=0)) for layer in layers}
    return head | {"total_forward_count": forwards, "all_forward_steps": steps, "summary": {"timestep_averages": means}}
