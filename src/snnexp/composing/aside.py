"""Hydra in a program that may use Hydra itself."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import hydra.conf  # noqa: F401  what Hydra registers of its own when it is imported shall stay
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from omegaconf.basecontainer import BaseContainer


@contextmanager
def hydra_aside() -> Iterator[None]:
    """Hydra is ours inside the context, with all that is registered; afterwards its global state is what it was: the same objects."""
    Plugins.instance()  # the same, of its plugins
    before, resolvers = Singleton._instances, BaseContainer._resolvers
    Singleton._instances = {kind: copy.deepcopy(one) for kind, one in before.items() if kind is not GlobalHydra}
    BaseContainer._resolvers = dict(resolvers)
    try:
        yield
    finally:
        Singleton._instances, BaseContainer._resolvers = before, resolvers
