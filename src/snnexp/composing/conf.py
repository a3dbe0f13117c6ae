"""Where the configs lie: ours, and those of the user that stand in front of them."""

from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import hydra
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.plugins.search_path_plugin import SearchPathPlugin

from snnexp.composing import hydra_releases


def conf_dir() -> Path:
    """Our config directory: inside the package when installed from a wheel, beside src/ in a checkout."""
    package = Path(find_spec("snnexp").origin).parent
    inside = package / "conf"
    return inside if (inside / "train.yaml").exists() else package.parents[1] / "conf"


def folders() -> list[Path]:
    """The config directories in the order in which Hydra searches them: those of the command line, of packages, and ours."""
    given = [Path(place.removeprefix("file://")) for place in SearchPath.in_front]
    packages = [find_spec(entry.value.replace(":", ".")) for entry in entry_points(group="snnexp.conf")]
    return [*given, *(Path(place) for spec in packages if spec for place in spec.submodule_search_locations or []), conf_dir()]


def options_of(group: str) -> list[str]:
    """The options of a config group of ours."""
    return [path.stem for path in (conf_dir() / group).glob("*.yaml")]


def composing() -> AbstractContextManager[None]:
    """Where `hydra.compose` finds our configs."""
    return hydra.initialize_config_dir(str(conf_dir()), **hydra_releases.COMPOSE)


class SearchPath(SearchPathPlugin):
    """Puts the user's config directories in front of ours: --config-dir first, then packages with a `snnexp.conf` entry point."""

    in_front: list[str] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra when it makes its search path."""
        packages = [f"pkg://{entry.value.replace(':', '.')}" for entry in entry_points(group="snnexp.conf")]
        for path in reversed(self.in_front + packages):
            search_path.prepend("snnexp", path, anchor=SearchPathQuery(provider="main"))
