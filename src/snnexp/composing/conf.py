"""The config directories: those of snnexp, and the user's, which take precedence."""

from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import hydra
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.plugins.search_path_plugin import SearchPathPlugin

from snnexp.composing import hydra_releases


def conf_dir() -> Path:
    """Return snnexp's config directory: inside the package if installed from a wheel, beside src/ in a checkout."""
    package = Path(find_spec("snnexp").origin).parent
    inside = package / "conf"
    return inside if (inside / "train.yaml").exists() else package.parents[1] / "conf"


def config_dirs() -> list[Path]:
    """Return the config directories in the order in which Hydra searches them: of the command line, of packages, of snnexp."""
    from_command_line = [Path(url.removeprefix("file://")) for url in SearchPath.in_front]
    packages = [find_spec(entry.value.replace(":", ".")) for entry in entry_points(group="snnexp.conf")]
    from_packages = [Path(path) for spec in packages if spec for path in spec.submodule_search_locations or []]
    return [*from_command_line, *from_packages, conf_dir()]


def options_of(group: str) -> list[str]:
    """Return the options of one of snnexp's config groups."""
    return [path.stem for path in (conf_dir() / group).glob("*.yaml")]


def initialize_hydra() -> AbstractContextManager[None]:
    """Let `hydra.compose` find snnexp's configs inside the context."""
    return hydra.initialize_config_dir(str(conf_dir()), **hydra_releases.COMPOSE)


class SearchPath(SearchPathPlugin):
    """Plugin that lets Hydra search the user's config directories first: --config-dir, then packages with a `snnexp.conf` entry point."""

    in_front: list[str] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the user's directories; Hydra calls this when it makes its search path."""
        packages = [f"pkg://{entry.value.replace(':', '.')}" for entry in entry_points(group="snnexp.conf")]
        for path in reversed(self.in_front + packages):
            search_path.prepend("snnexp", path, anchor=SearchPathQuery(provider="main"))
