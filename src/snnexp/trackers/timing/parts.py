"""Named parts of a network, by hooks on its modules; and the exchange of gradients between processes."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from snnexp.trackers.timing import spans as timing_spans
from snnexp.trackers.timing.spans import Frame, Spans

_with_hook: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def attach(model: nn.Module, depth: int = 2) -> Callable[[], None]:
    """Time a network ("forward") and its modules down to `depth` levels ("forward/stage1/blocks") wherever a global TimingLogger listens.

    A module of a list, which is never called itself, counts as one of the list's parts. A compiled module is one part. Several calls
    within a step add up. What is returned takes the hooks off again; the model computes the same with them as without.
    """
    handles: list[Any] = []
    _hook(model, Spans.open_forward, handles)
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if not _is_compiled(inner):
        _hook_children(inner, (), depth, handles, {id(model), id(inner)})

    def detach() -> None:
        for handle in handles:
            handle.remove()

    return detach


def _hook_children(module: nn.Module, path: tuple[str, ...], depth: int, handles: list[Any], seen: set[int]) -> None:
    for name, child in module.named_children():
        here = (*path, name) if len(path) < depth else path  # below the last level only members of lists, which count for the list
        if id(child) in seen or not here:
            continue
        seen.add(id(child))
        if getattr(child.forward, "__func__", None) is nn.Module.forward:  # a ModuleList or the like
            _hook_children(child, here, depth, handles, seen)
            continue
        _hook(child, lambda spans, path=here: spans.open_part(path), handles)
        if len(here) < depth and not _is_compiled(child):
            _hook_children(child, here, depth, handles, seen)


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in dict(module.named_children())  # what torch.compile makes of a module; its class would take a second to import


def _hook(module: nn.Module, opening: Callable[[Spans], Frame | None], handles: list[Any]) -> None:
    open_now: list[tuple[Spans, Frame | None]] = []  # calls of this module under way

    def before(module: nn.Module, inputs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        spans = timing_spans.running
        if spans is not None:
            open_now.append((spans, opening(spans)))

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and open_now:
            spans, frame = open_now.pop()
            spans.close(frame)

    # Always called: a checkpointed block that is run again is left by an exception as soon as it has what it needs.
    handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)]


def watch_sync(net: nn.Module) -> None:
    """Time the exchange of gradients of a network under DDP, on every rank; any other is left alone.

    Every bucket goes as it would without: multiplied by 1 / processes, then summed. The hook stays, because DDP takes none off.
    """
    if not isinstance(net, DistributedDataParallel) or net in _with_hook:
        return
    _with_hook.add(net)
    group, share = net.process_group, 1.0 / net.process_group.size()

    def exchange(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        spans = timing_spans.running
        arrived = spans.sync_begins() if spans is not None else None
        future = dist.all_reduce(bucket.buffer().mul_(share), group=group, async_op=True).get_future()

        def received(done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
            if arrived is not None:
                arrived()
            return done.value()[0]

        return future.then(received)

    net.register_comm_hook(None, exchange)
