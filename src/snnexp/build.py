"""Builds all the objects of a run from its configuration; no other module does."""

from typing import Any

from spikingjelly.activation_based import functional
from torch import nn

from snnexp import config as configuration
from snnexp import provenance
from snnexp.contracts import Schedule, optional_member
from snnexp.data.sampler import TrainBatches, pool
from snnexp.engine.arithmetic.precision import resolve
from snnexp.engine.arithmetic.settle import settle
from snnexp.engine.distributed import Ranks
from snnexp.engine.ema import MovingAverage
from snnexp.engine.experiment import Experiment, make_optimizer, make_trackers, set_determinism, training_form
from snnexp.engine.loader import budget, loader
from snnexp.engine.probe import ValidationProbe
from snnexp.engine.pruning.start import prepare_pruning
from snnexp.engine.state import seed_everything
from snnexp.engine.terminal import Terminal
from snnexp.engine.weights import transfer
from snnexp.errors import UserError
from snnexp.loggers.jsonl import MetricsLog
from snnexp.parts import instantiate, make_data, make_model, make_task
from snnexp.rundir import RunDir


def make_experiment(run: RunDir, settings: dict[str, Any], ranks: Ranks, terminal: Terminal) -> Experiment:
    """Build everything that a run needs to train; the loop then restores the state of a checkpoint."""
    config = configuration.top_level(settings)
    set_determinism(config.deterministic)
    data, task = make_data(settings), make_task(settings)
    seed_everything(config.seed, rank=0)  # every rank builds the same weights
    model = make_model(settings, data, task).to(ranks.device)
    choice = settle(run, settings, model, ranks)
    choice.lay_out(model)
    latest = run.checkpoint("latest")
    if config.init_from is not None and not latest.exists():
        message, record = transfer.transfer(model, config.init_from, data, config.init_partial, settings["model"])
        terminal.say(message)
        if ranks.main:
            provenance.add(run.root, "init_from", record)
    pruner, pruned = prepare_pruning(settings, model, data, latest) if settings["pruner"] else (None, {})
    if config.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        functional.invalidate_reset_cache(model)

    precision = resolve(choice.precision, ranks.device)
    precision.set_kernels()
    average = MovingAverage(model, config.ema) if config.ema is not None else None
    probe = ValidationProbe(model, task, data, config.batch_size, ranks.device, precision, average) if data.splits["val"] else None
    trackers = make_trackers(settings, model, task, run, ranks, probe)  # before torch.compile, which would miss later hooks
    optimizer = make_optimizer(settings, model)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    indices = pool(data.splits["train"], config.limit_train)
    limits = budget(data, "train", augmented=True)
    lengths = data.lengths("train")
    batches = TrainBatches(indices, config.batch_size, config.seed, ranks.rank, ranks.world, lengths=lengths, **limits)
    if min(len(indices), config.batch_size) < ranks.world:
        raise UserError(
            f"{len(indices)} training samples in batches of {config.batch_size} do not give each of the {ranks.world} processes one; "
            "use fewer devices."
        )
    at_loading = optional_member(model, "at_loading")
    pinned = ranks.device.type == "cuda"
    return Experiment(
        run=run,
        settings=settings,
        config=config,
        ranks=ranks,
        terminal=terminal,
        data=data,
        task=task,
        model=model,
        net=training_form(model, config, ranks),
        optimizer=optimizer,
        schedule=instantiate(settings["scheduler"], config.trust, Schedule),
        choice=choice,
        precision=precision,
        scaler=precision.scaler(),
        ema=average,
        train_batches=batches,
        train_loader=loader(data.view("train", augment=True), batches, config.workers, pinned, config.prefetch, at_loading),
        trackers=trackers,
        metrics=MetricsLog(run.metrics_log) if ranks.main else None,
        pruner=pruner,
        **pruned,
    )
