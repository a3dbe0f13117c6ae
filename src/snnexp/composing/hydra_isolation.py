"""Isolation from a program that may use Hydra itself."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import hydra.conf  # noqa: F401  so that what Hydra registers at its own import is not removed afterwards
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from omegaconf.basecontainer import BaseContainer


@contextmanager
def isolated_hydra() -> Iterator[None]:
    """Let snnexp use Hydra inside the context, with all that the program has registered, then restore Hydra's global state."""
    Plugins.instance()  # so that the plugins that Hydra registers at first use are not removed afterwards either
    instances, resolvers = Singleton._instances, BaseContainer._resolvers
    Singleton._instances = {kind: copy.deepcopy(instance) for kind, instance in instances.items() if kind is not GlobalHydra}
    BaseContainer._resolvers = dict(resolvers)
    try:
        yield
    finally:
        Singleton._instances, BaseContainer._resolvers = instances, resolvers
