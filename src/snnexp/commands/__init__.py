"""One file per verb. Here are their names alone, so that help and completion need not load them."""

COMMANDS = {
    "train": "compose, train, test; a new run directory         snnexp train model=vggsnn T=10",
    "resume": "exact continuation of a run in its directory      snnexp resume RUN epochs=200",
    "evaluate": "a checkpoint of a run on a split                  snnexp evaluate RUN split=val",
    "prune": "take channels out, then fine-tune; a new run      snnexp prune RUN pruner.ratio=0.3",
    "profile": "time and memory of a step; the fastest setting    snnexp profile model=vggsnn tune=true",
    "analyze": "curves, spike plots and a report of a run         snnexp analyze RUN",
    "watch": "a run while it trains, in the terminal            snnexp watch RUN interval=5",
    "runs": "table of runs: state, settings, best, test        snnexp runs outputs model=vggsnn",
    "data": "fetch, verify and prepare a data set              snnexp data dataset=cifar10_dvs",
}
TAKES_RUN = ("resume", "evaluate", "prune")
