"""The arguments in which Hydra 1.3 and 1.4 differ; with them both compose the same configuration."""

from typing import Any

import hydra

from snnexp.config import register_resolver

if tuple(int(part) for part in hydra.__version__.split(".")[:2]) < (1, 4):
    COMPOSE: dict[str, Any] = {"version_base": "1.3"}
    """Arguments of every function that composes: the release whose defaults apply. Hydra 1.4 has only its own defaults."""
    MAIN = COMPOSE
    STORE: dict[str, Any] = {}
    register_resolver("hydra_override_dirname", lambda *, _root_: _root_.hydra.job.override_dirname, replace=True)
else:
    from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS

    COMPOSE = {}
    # The configuration is the user's own, so any callback is allowed; Hydra's part of a saved run is never read (compose.saved_config).
    MAIN = {"execution_whitelist": UNSAFE_DISABLE_EXECUTION_CHECKS}
    STORE = {"replace": True}
