"""From a configuration to objects: the only place that does so."""

import inspect
import os
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from snnexp import config as configuration
from snnexp import provenance, targets
from snnexp.config import TrainConfig
from snnexp.data.sampler import TrainBatches, pool
from snnexp.engine import checkpoint, choice, transfer
from snnexp.engine.choice import OPEN, Choice
from snnexp.engine.decay import parameter_groups
from snnexp.engine.distributed import Ranks, choose_device
from snnexp.engine.ema import MovingAverage
from snnexp.engine.held_out import HeldOut
from snnexp.engine.loader import budget, loader
from snnexp.engine.precision import Precision, resolve
from snnexp.engine.precision import check as check_precision
from snnexp.engine.restart import OTHER_SAMPLES
from snnexp.engine.schedule import Constant
from snnexp.engine.state import State, seed_everything
from snnexp.engine.terminal import Terminal
from snnexp.errors import RunFailed, UserError
from snnexp.loggers.jsonl import MetricsLog
from snnexp.models.neurons import lif_implementation
from snnexp.pruning import surgery
from snnexp.rundir import RunDir, read_json, write_json


@dataclass
class Experiment:
    """All the objects of a run, on one rank."""

    run: RunDir
    settings: dict[str, Any]  # config.json
    config: TrainConfig  # its top level, typed
    ranks: Ranks
    terminal: Terminal
    data: Any
    task: Any
    model: nn.Module  # the weights
    net: nn.Module  # what the training step calls: the model, compiled or under DDP if asked for
    optimizer: torch.optim.Optimizer
    schedule: Any
    choice: Choice  # of precision and layout
    precision: Precision
    scaler: torch.amp.GradScaler
    ema: MovingAverage | None
    train_batches: TrainBatches
    train_loader: DataLoader
    trackers: dict[str, Any]
    metrics: MetricsLog | None  # on the main rank
    pruner: Any = None  # while there may be something to prune
    kept: dict[str, list[int]] = field(default_factory=dict)  # of a pruned model: the channels that each group has left
    ratio: float = 0.0  # to which it is pruned
    sizes: dict[str, int] = field(default_factory=dict)  # channels of each group of the dense model, if the run prunes
    loggers: list[Any] = field(default_factory=list)

    @property
    def monitor(self) -> str:
        """The validation metric by which the best epoch is chosen."""
        return (self.config.monitor or self.task.monitor).removeprefix("Val/")

    @property
    def mode(self) -> str:
        """Whether a larger (max) or a smaller (min) value of it is better."""
        return self.task.modes[self.monitor]

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def neuron_implementation(self) -> str:
        """Which implementation of the LIF runs on this device; "none" for a model without spiking neurons."""
        if not any(isinstance(module, neuron.BaseNode) for module in self.model.modules()):
            return "none"
        return lif_implementation(self.ranks.device, self.config.compile)

    def gradient_sync(self, last: bool) -> AbstractContextManager:
        """Gradients cross between ranks only with the last batch of an optimizer step."""
        return nullcontext() if last or not isinstance(self.net, DistributedDataParallel) else self.net.no_sync()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model carries its moving average inside the context, if the run keeps one."""
        with self.ema.applied(self.model) if self.ema else nullcontext():
            yield

    def start_loggers(self, state: State) -> None:
        """Cut the logs at the state and open them to go on from there."""
        if not self.ranks.main:
            return
        self.metrics.truncate(state.metrics_offset)
        if self.settings["logger"].get("_target_"):
            first = {"first_epoch": state.epoch + 1, "first_step": state.step + 1}
            logger = instantiate(self.settings["logger"], self.config.trust, run_dir=self.run.root, **first)
            logger.hparams(self.settings)
            self.loggers = [logger]

    def close(self) -> None:
        """Close logs and loggers."""
        for logger in self.loggers:
            logger.close()
        if self.metrics is not None:
            self.metrics.close()


def instantiate(node: dict[str, Any], trust: list[str] | None = None, **context: Any) -> Any:
    """The object a config node describes; `context` fills the constructor's parameters that the node leaves null or out.

    Raises: UserError if the target is not there or not trusted.
    """
    target = targets.locate(node["_target_"], trust)
    given = {name: value for name, value in node.items() if name != "_target_"}
    accepted = targets.parameters(target)
    for name, value in context.items():
        if name in accepted and given.get(name) is None:
            given[name] = value
    try:
        return target(**given)
    except (UserError, RunFailed):
        raise
    except Exception as error:  # the user's own class, or torch's, may refuse in any way
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{node['_target_']} cannot be made: {type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        ) from error


def data(settings: dict[str, Any], **context: Any) -> Any:
    """The data set of a run."""
    return instantiate(settings["dataset"], settings["trust"], **context)


def model(settings: dict[str, Any], data: Any, task: Any) -> nn.Module:
    """The model of a run, with the shape that its data and its task ask for.

    Raises: UserError if the model wants what the data do not have.
    """
    node, there = settings["model"], {"num_outputs": task.outputs(data)} | data.provides
    for name in ("in_channels", "num_features", "num_outputs", "num_classes"):
        given, needed = node.get(name), there.get(name)
        if given is not None and needed is not None and (given < needed if name == "num_classes" else given != needed):
            raise UserError(f"model.{name}={given}: {data.name} has {needed}; leave it null to take the data's.")
    accepted = targets.parameters(targets.locate(node["_target_"], settings["trust"]))
    for name in targets.FROM_DATA:
        if name in accepted and node.get(name) is None and name not in there and accepted[name].default is inspect.Parameter.empty:
            raise UserError(
                f"model={settings['choices']['model']} needs {name}, which {data.name} does not have: frames, images, graphs and "
                "stays are for different models. Choose another model= or dataset=."
            )
    return instantiate(node, settings["trust"], **there)


def optimizer(settings: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a run, over a model's parameters; its key `decay` (older runs have none) says which of them decay.

    Raises: UserError if it has no decay to choose for.
    """
    node, accepted = settings["optimizer"], targets.parameters(targets.locate(settings["optimizer"]["_target_"], settings["trust"]))
    if "decay" in accepted:  # a user's own, which means something else by it
        return instantiate(node, settings["trust"], params=model.parameters())
    decay = node.get("decay", "all")
    if decay != "all" and "weight_decay" not in accepted and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        raise UserError(f"optimizer.decay={decay}: {node['_target_']} has no weight_decay; leave optimizer.decay=all.")
    given = {name: value for name, value in node.items() if name != "decay"}
    return instantiate(given, settings["trust"], params=parameter_groups(model, decay))


def task(settings: dict[str, Any]) -> Any:
    """The task of a run.

    Raises: UserError if `monitor` is not one of its metrics.
    """
    built = instantiate(settings["task"], settings["trust"])
    monitor = settings["monitor"]
    if monitor is not None and monitor.removeprefix("Val/") not in built.modes:
        raise UserError(f"monitor={monitor}: not a metric of this task; allowed: {', '.join(f'Val/{name}' for name in built.modes)}.")
    return built


def trackers(
    settings: dict[str, Any], model: nn.Module, task: Any, run: RunDir, ranks: Ranks, probe: HeldOut | None = None
) -> dict[str, Any]:
    """The trackers of a run, by name."""
    names = list(settings["tracker"])
    supplied = {"model": model, "folder": run.root, "main": ranks.main, "reduce": ranks.summed, "trackers": names}
    supplied |= {"task": task, "probe": probe}
    return {name: instantiate(settings["tracker"][name], settings["trust"], **supplied) for name in names}


def check(settings: dict[str, Any], trust: list[str] | None = None, begun: bool = False) -> None:
    """Prepare the data and try every part of a run, so that input at fault is refused before a run exists.

    `trust=None` is for a configuration that the user has just composed; a pruned run that has `begun` needs no source any more.
    Raises: UserError.
    """
    settings = settings | {"trust": trust}
    device = choose_device(settings["device"], settings["devices"] - 1)
    if settings["devices"] > 1 and ":" in settings["device"]:
        raise UserError(f"device={settings['device']} names one device, but devices={settings['devices']}; use device=cuda.")
    check_precision(settings["precision"], device)
    if settings["sync_bn"] and device.type != "cuda":
        raise UserError("sync_bn=true needs CUDA devices: torch's SyncBatchNorm has no CPU form. Use sync_bn=false.")
    if settings["init_from"] is not None and not begun:
        transfer.read(settings["init_from"])  # a file that is none is told before the data, which may take hours to prepare
    its_data, its_task = data(settings), task(settings)
    with torch.device("meta"):
        its_model = model(settings, its_data, its_task)
    if settings["deterministic"] and device.type == "cuda" and not getattr(its_model, "deterministic_on_cuda", True):
        raise UserError(
            f"deterministic=true: model={settings['choices']['model']} samples along a flow, and the gradient of that has no deterministic "
            "form on CUDA. Use device=cpu, or do without."
        )
    if settings["devices"] > 1 and getattr(its_data, "frames", 2) == 1:
        raise UserError("dataset.frames=1: one frame has no flow, whose weights several processes would wait for. Use 2, or devices=1.")
    trackers(settings, its_model, its_task, RunDir(Path()), Ranks(0, 1, device))
    if settings["pruner"] and not (begun and "stages" in settings):
        check_pruning(settings, its_model, its_data)
    optimizer(settings, nn.Linear(1, 1))
    schedule = instantiate(settings["scheduler"], trust)
    check_splits(settings, its_data, listens=type(schedule).observe is not Constant.observe)
    if settings["logger"].get("_target_"):
        targets.locate(settings["logger"]["_target_"], trust)
    if settings["init_from"] is not None and not begun:
        transfer.fit(its_model, settings["init_from"], its_data, settings["init_partial"], judged_alone=judges_alone(settings))


def judges_alone(settings: dict[str, Any]) -> bool:
    """True if a run trains nothing, but judges the weights that it is given."""
    return settings["epochs"] == 0 and "stages" not in settings


def check_pruning(settings: dict[str, Any], its_model: nn.Module, its_data: Any) -> None:
    """Raises: UserError if the run would prune and cannot: its settings, its model, or the checkpoint it is to start from."""
    if settings.get("prune_from") is not None:
        source = source_of(settings)
        if source.exists() or "train" not in settings["stages"]:
            adopt_structure(settings, its_model, its_data, checkpoint.load(source), source)
        elif not (source.parents[1] / "config.json").exists():
            raise UserError(f"prune_from={source}: the dense run of this flow is no longer there, and it was not pruned before.")
    if "stages" not in settings:
        pruner(settings, its_model).scheduled(settings["epochs"])
    elif "prune" in settings["stages"]:
        pruner(settings, its_model)


def source_of(settings: dict[str, Any]) -> Path:
    """The checkpoint that a pruned run starts from: that of the best epoch or, of a run that validates none, the latest."""
    best = Path(settings["prune_from"])
    latest = best.with_name("checkpoint_latest.pth")
    return latest if not best.exists() and latest.exists() else best


def adopt_structure(settings: dict[str, Any], its_model: nn.Module, its_data: Any, saved: dict[str, Any], source: Path) -> None:
    """Give a model the structure of the checkpoint that a run is to prune or to fine-tune.

    Raises: UserError if that does not fit the model or its data, or if there is nothing to fine-tune.
    """
    if not its_data.same_samples(saved["data"]):
        raise UserError(f"{source}: {OTHER_SAMPLES}")
    if "prune" not in settings["stages"] and not saved["pruned"]["kept"]:
        raise UserError(f"stages={settings['stages']}: {source} is not pruned; add the stage prune, or train it on with snnexp resume.")
    surgery.rebuild(its_model, saved["pruned"]["kept"], source)
    checkpoint.check_fits(its_model, checkpoint.weights(saved), source)


def pruner(settings: dict[str, Any], model: nn.Module) -> Any:
    """The pruner of a run, for a model as it is before the first cut.

    Raises: UserError.
    """
    node, trust = settings["pruner"], settings["trust"]
    if "criterion" in node:
        if not isinstance(node["criterion"], dict) or "_target_" not in node["criterion"]:
            raise UserError(f"pruner.criterion={node['criterion']!r} names no class; choose one with pruner=spike_map.")
        node = node | {"criterion": instantiate(node["criterion"], trust)}
    return instantiate(node, trust, model=model)


def check_splits(settings: dict[str, Any], its_data: Any, listens: bool) -> None:
    """Raises: UserError if there is nothing to train on, or a setting listens to a validation that there is none for."""
    if not its_data.splits["train"]:
        raise UserError(f"{its_data.name} in {its_data.directory} has no training samples: {its_data.protocol}.")
    its_data.view("train", augment=True)  # where a crop does not fit, it says so
    if not its_data.splits["val"]:
        for key, used in (("early_stop", settings["early_stop"]), ("monitor", settings["monitor"]), ("scheduler=plateau", listens)):
            if used:
                raise UserError(f"{key} needs a validation split, and {its_data.name} has none: {its_data.protocol}.")


def check_fits(settings: dict[str, Any], saved: dict[str, Any], path: Path) -> None:
    """Try a checkpoint on the model and the data of a run.

    Raises: UserError if it does not fit.
    """
    its_data = data(settings)
    its_data.load_state_dict(saved["data"])
    if not its_data.same_samples(saved["data"]):
        raise UserError(OTHER_SAMPLES)
    with torch.device("meta"):
        its_model = model(settings, its_data, task(settings))
    surgery.rebuild(its_model, saved["pruned"]["kept"], path)
    checkpoint.check_fits(its_model, saved["state_dict"], path)


def experiment(run: RunDir, settings: dict[str, Any], ranks: Ranks, terminal: Terminal) -> Experiment:
    """Everything a run needs to train, newly made; the loop restores what a checkpoint holds."""
    config = configuration.top_level(settings)
    set_determinism(config.deterministic)
    its_data, its_task = data(settings), task(settings)
    seed_everything(config.seed, rank=0)  # every rank builds the same weights
    its_model = model(settings, its_data, its_task).to(ranks.device)
    chosen = settled(run, settings, its_model, ranks)
    chosen.lay_out(its_model)
    latest = run.checkpoint("latest")
    if config.init_from is not None and not latest.exists():
        said, record = transfer.transfer(its_model, config.init_from, its_data, config.init_partial, settings["model"])
        terminal.say(said)
        if ranks.main:
            provenance.add(run.root, "init_from", record)
    its_pruner, pruned = pruning_of(settings, its_model, its_data, latest) if settings["pruner"] else (None, {})
    if config.sync_bn:
        its_model = nn.SyncBatchNorm.convert_sync_batchnorm(its_model)
        functional.invalidate_reset_cache(its_model)

    precision = resolve(chosen.precision, ranks.device)
    average = MovingAverage(its_model, config.ema) if config.ema is not None else None
    probe = HeldOut(its_model, its_task, its_data, config.batch_size, ranks.device, precision, average) if its_data.splits["val"] else None
    its_trackers = trackers(settings, its_model, its_task, run, ranks, probe)  # before the model is compiled, which looks at it once
    its_optimizer = optimizer(settings, its_model)
    for group in its_optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    indices = pool(its_data.splits["train"], config.limit_train)
    batches = TrainBatches(indices, config.batch_size, config.seed, ranks.rank, ranks.world, **budget(its_data, "train", augmented=True))
    if min(len(indices), config.batch_size) < ranks.world:
        raise UserError(
            f"{len(indices)} training samples in batches of {config.batch_size} do not give each of the {ranks.world} processes one; "
            "use fewer devices."
        )
    return Experiment(
        run=run,
        settings=settings,
        config=config,
        ranks=ranks,
        terminal=terminal,
        data=its_data,
        task=its_task,
        model=its_model,
        net=training_form(its_model, config, ranks),
        optimizer=its_optimizer,
        schedule=instantiate(settings["scheduler"], config.trust),
        choice=chosen,
        precision=precision,
        scaler=precision.scaler(),
        ema=average,
        train_batches=batches,
        train_loader=loader(its_data.view("train", augment=True), batches, config.workers, ranks.device.type == "cuda", config.prefetch),
        trackers=its_trackers,
        metrics=MetricsLog(run.metrics_log) if ranks.main else None,
        pruner=its_pruner,
        **pruned,
    )


def settled(run: RunDir, settings: dict[str, Any], its_model: nn.Module, ranks: Ranks) -> Choice:
    """What a run computes in, the same on every rank and for its life: where the configuration says auto, it is recorded here.

    Raises: UserError if the record is damaged; RunFailed if the disk refuses it.
    """
    if "auto" not in [settings[key] for key in OPEN]:
        return choice.choose(settings, its_model, ranks.device)
    chosen = None
    if ranks.main:
        chosen = choice.choose(settings, its_model, ranks.device, chosen_before(run, settings))
        record = read_json(run.arithmetic) if run.arithmetic.exists() else {}
        if not set(chosen.open) <= record.keys():
            write_json(run.arithmetic, record | chosen.record())
    return ranks.gather(chosen)[0]


def chosen_before(run: RunDir, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a run has chosen already: by its record; by its checkpoint, if it is older than such records; by the run it is pruned from."""
    if run.arithmetic.exists():
        yield choice.recorded(run.arithmetic)
    if (latest := run.checkpoint("latest")).exists():
        yield choice.of_checkpoint(checkpoint.load(latest))
    elif settings.get("prune_from") is not None:
        yield choice.of_checkpoint(checkpoint.load(source_of(settings)))


def pruning_of(settings: dict[str, Any], its_model: nn.Module, its_data: Any, latest: Path) -> tuple[Any, dict[str, Any]]:
    """The pruner of a run that prunes, while there may be something to prune, and what its checkpoint, or its source, has pruned already.

    The model gets that structure; where the run is just made from a source, its weights too. Raises: UserError.
    """
    sizes = {"sizes": {group.name: group.size for group in surgery.groups_of(its_model)}}
    gradual = "stages" not in settings
    its_pruner = pruner(settings, its_model) if gradual else None  # counts from the dense model
    if latest.exists():
        pruned = checkpoint.load(latest)["pruned"]
        surgery.rebuild(its_model, pruned["kept"], latest)
        return its_pruner, sizes | pruned
    if gradual:
        return its_pruner, sizes
    pruned = {}
    if settings["prune_from"] is not None:
        source = source_of(settings)
        saved = checkpoint.load(source)
        adopt_structure(settings, its_model, its_data, saved, source)
        its_data.load_state_dict(saved["data"])
        checkpoint.load_into(its_model, checkpoint.weights(saved), source)
        pruned = saved["pruned"]
    return pruner(settings, its_model) if "prune" in settings["stages"] else None, sizes | pruned


def refit(x: Experiment, cut: surgery.Cut) -> None:
    """Take channels out of the model of a run and of all that follows its weights; what survives keeps its moments and averages."""
    names = {id(p): name for name, p in x.model.named_parameters()}
    order = [names[id(p)] for group in x.optimizer.param_groups for p in group["params"]]
    moments = cut.of_moments(x.optimizer.state_dict(), order)
    average = cut.of_entries(x.ema.weights) if x.ema is not None else {}
    x.kept = surgery.compose(x.kept, cut.kept, {group.name: group.size for group in surgery.groups_of(x.model)})
    cut.apply(x.model)
    x.optimizer = optimizer(x.settings, x.model)
    x.optimizer.load_state_dict(moments)
    if x.ema is not None:
        updates, x.ema = x.ema.updates, MovingAverage(x.model, x.ema.decay)
        x.ema.weights, x.ema.updates = average, updates
    if x.config.compile:
        torch.compiler.reset()  # it counts the shapes that it has compiled the same code for, and gives up after a few
    x.net = training_form(x.model, x.config, x.ranks)


def training_form(model: nn.Module, config: TrainConfig, ranks: Ranks) -> nn.Module:
    """The model as the training step calls it: compiled if asked for, under DDP if there are other ranks."""
    if config.compile:
        torch.compiler.config.recompile_limit = 32  # an attention that is used in several ways is compiled for each, and for any size
    net = torch.compile(model) if config.compile else model
    if ranks.world > 1:
        net = DistributedDataParallel(net, device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None)
    return net


def set_determinism(wanted: bool) -> None:
    """Choose deterministic kernels only; the workspace setting must be there before CUDA starts."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted
