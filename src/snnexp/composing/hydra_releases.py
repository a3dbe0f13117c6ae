"""What Hydra 1.3 and 1.4 want to hear in different words; both compose the same."""

from typing import Any

import hydra

from snnexp.config import register_resolver

if tuple(int(number) for number in hydra.__version__.split(".")[:2]) < (1, 4):
    COMPOSE: dict[str, Any] = {"version_base": "1.3"}
    """Of whatever composes: whose defaults hold. Hydra 1.4 has its own alone."""
    MAIN = COMPOSE
    STORE: dict[str, Any] = {}
    register_resolver("hydra_override_dirname", lambda *, _root_: _root_.hydra.job.override_dirname, replace=True)
else:
    from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS

    COMPOSE = {}
    # What is composed here is its user's own, whose callbacks may be any; a saved run's part of Hydra is never read (compose.saved_config).
    MAIN = {"execution_whitelist": UNSAFE_DISABLE_EXECUTION_CHECKS}
    STORE = {"replace": True}
