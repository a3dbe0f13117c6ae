"""Configurations drawn at random, sensible and not: each trains a step or is refused in words."""

import random
import shutil
from pathlib import Path

from attacks.forks import Tally, command

KINDS = {
    "frames": ["dataset=digits_dvs", "dataset.size=16"],
    "pictures": ["dataset=digits", "dataset.size=16"],
    "graphs": ["dataset=digits_graph"],
    "stays": ["dataset=synthetic_icu", "dataset.stays=80"],
    "video": ["dataset=photo_pan", "dataset.clips=16", "dataset.size=32", "dataset.crop=16", "dataset.crops=1", "dataset.window=9"],
}
MODELS = {
    "frames": [
        ["model=vggsnn", "model.width=0.125"], ["model=resnet19", "model.width=0.125"],
        ["model=spikformer_dvs", "model.dim=32", "model.heads=2"],
    ],
    "pictures": [["model=spikformer", "model.dim=32", "model.depth=1", "model.heads=2"], ["model=vggsnn", "model.width=0.125"]],
    "graphs": [["model=spiking_gnn", "model.width=8"]],
    "stays": [["model=seqset_vae", "model.width=16", "model.levels=2"], ["model=set_vae"]],
    "video": [["model=svrt_small", "model.width=8", "model.last_width=8"]],
}  # fmt: skip
KEYS = {
    "T": ["1", "2", "3", "0", "-1", "1.5", "null", "abc"],
    "batch_size": ["1", "2", "4", "1000", "0", "-3", "2.5", "1e400"],
    "lr": ["1e-3", "0", "-1", "1e38", "inf", "nan", "null", "'1e-3'", "[1]"],
    "epochs": ["1", "0", "-1", "1e3x", "true"],
    "accumulate": ["1", "2", "99", "0"],
    "clip_grad": ["null", "1.0", "0", "-1", "None", "inf"],
    "ema": ["null", "0.9", "1.0", "0", "2"],
    "early_stop": ["null", "1", "0", "-1"],
    "val_every": ["1", "2", "0.5", "0", "0.3", "-1"],
    "save_freq": ["1", "10", "0"],
    "keep_last": ["null", "1", "0"],
    "keep_best": ["1", "3", "0"],
    "monitor": ["null", "Acc1", "Val/Loss", "nothing"],
    "optimizer": ["adam", "adamw", "sgd", "adamw8bit", "nothing", "[adam,sgd]"],
    "scheduler": ["cosine", "plateau", "none", "nothing"],
    "tracker": ["none", "lif", "timing", "[lif,timing]", "posterior", "lif_full", "nothing"],
    "pruner": ["none", "spike_map", "weight_magnitude", "random", "spike_entropy"],
    "task": ["classification", "graph_classification", "graph_regression", "stay_outcome", "set_vae", "deblurring"],
    "precision": ["fp32", "bf16", "fp16", "auto", "fp8"],
    "seed": ["0", "-1", "99999999999999999999", "x"],
    "limit_val": ["1", "2", "0", "null"],
    "exp_name": ["a b", "x/y", "..", "é", "'1e5'", "a=b", ""],
    "dataset.val_fraction": ["0", "0.1", "0.9", "1", "-0.1", "nan"],
    "model.neuron": ["tet", "spikingjelly", "nothing"],
    "pruner.ratio": ["0.5", "0", "1", "0.99", "-1"],
    "device": ["cpu", "cuda:7", "tpu"],
    "workers": ["0", "1", "-1"],
    "lrr": ["1"],
}
"""Keys with values that are right and values that are not."""


def draw(chance: random.Random) -> list[str]:
    """Return the words of a random command line."""
    kind = chance.choice(list(KINDS))
    words = {word.partition("=")[0]: word for word in [*KINDS[kind], *chance.choice(MODELS[kind if chance.random() < 0.9 else "frames"])]}
    words |= {word.partition("=")[0]: word for word in ("debug=one_step", "logger=none", "device=cpu", "T=2", "channels_last=false")}
    for key in chance.sample(list(KEYS), chance.randint(1, 4)):
        words[key] = f"{key}={chance.choice(KEYS[key])}"
    return list(words.values())


def attempt(chance: random.Random, folder: Path, tally: Tally) -> None:
    """Train one random configuration, for one step."""
    words = draw(chance)
    tally.tried += 1
    ended = command(["train", *words], folder, timeout=120)
    if problem := ended.wrong_message():
        tally.faults.append(f"snnexp train {' '.join(words)}: {problem}\n{ended.output[-1500:]}")
    else:
        tally.outcomes[{0: "trained", 1: "failed in words", 2: "refused"}[ended.code]] += 1
    shutil.rmtree(folder / "outputs", ignore_errors=True)
