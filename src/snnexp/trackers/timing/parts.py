"""Timing of named parts of a network by hooks on its modules, and of the exchange of gradients between processes."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from snnexp.trackers.timing import spans as timing_spans
from snnexp.trackers.timing.spans import Frame, Spans

_networks_with_hook: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def attach(model: nn.Module, depth: int = 2) -> Callable[[], None]:
    """Time a network ("forward") and its modules down to `depth` levels ("forward/stage1/blocks") while a global TimingLogger is set.

    Members of a module list, which is never called itself, are timed below the list. A compiled module is one part. Several calls within
    a step add up. Return a function that removes the hooks; the model computes the same with them as without.
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
        child_path = (*path, name) if len(path) < depth else path  # below the last level only members of lists, which count for the list
        if id(child) in seen or not child_path:
            continue
        seen.add(id(child))
        if getattr(child.forward, "__func__", None) is nn.Module.forward:  # a ModuleList or the like
            _hook_children(child, child_path, depth, handles, seen)
            continue
        _hook(child, lambda spans, path=child_path: spans.open_part(path), handles)
        if len(child_path) < depth and not _is_compiled(child):
            _hook_children(child, child_path, depth, handles, seen)


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in dict(module.named_children())  # as torch.compile wraps a module; importing its class would take a second


def _hook(module: nn.Module, open_span: Callable[[Spans], Frame | None], handles: list[Any]) -> None:
    open_calls: list[tuple[Spans, Frame | None]] = []  # of this module

    def before(module: nn.Module, inputs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        spans = timing_spans.running
        if spans is not None:
            open_calls.append((spans, open_span(spans)))

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and open_calls:
            spans, frame = open_calls.pop()
            spans.close(frame)

    # always_call: a checkpointed block that is run again ends with an exception as soon as it has what it needs.
    handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)]


def watch_sync(net: nn.Module) -> None:
    """Time the exchange of gradients of a network under DDP, on every rank; do nothing for a network without DDP.

    Every bucket is reduced as without the hook: multiplied by 1 / processes, then summed. The hook stays, because DDP cannot remove one.
    """
    if not isinstance(net, DistributedDataParallel) or net in _networks_with_hook:
        return
    _networks_with_hook.add(net)
    group, share = net.process_group, 1.0 / net.process_group.size()

    def exchange(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        spans = timing_spans.running
        mark_arrived = spans.begin_sync() if spans is not None else None
        future = dist.all_reduce(bucket.buffer().mul_(share), group=group, async_op=True).get_future()

        def finish(done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
            if mark_arrived is not None:
                mark_arrived()
            return done.value()[0]

        return future.then(finish)

    net.register_comm_hook(None, exchange)
