"""One file per command. This one holds only their names, so that help and completion need not import the others."""

COMMANDS = {
    "train": "compose, train, test; a new run directory         snnexp train model=vggsnn T=10",
    "resume": "exact continuation of a run in its directory      snnexp resume RUN epochs=200",
    "evaluate": "evaluate a checkpoint of a run on a split         snnexp evaluate RUN split=val",
    "prune": "remove channels, then fine-tune; a new run        snnexp prune RUN pruner.ratio=0.3",
    "profile": "time and memory of a step; fastest settings       snnexp profile model=vggsnn tune=true",
    "analyze": "curves, spike plots and a report of a run         snnexp analyze RUN",
    "watch": "follow a run in the terminal while it trains      snnexp watch RUN interval=5",
    "runs": "table of runs: state, settings, best, test        snnexp runs outputs model=vggsnn",
    "data": "fetch, verify and prepare a data set              snnexp data dataset=cifar10_dvs",
}
TAKES_RUN = ("resume", "evaluate", "prune")
"""The commands that compose with Hydra what a RUN on their command line holds."""
