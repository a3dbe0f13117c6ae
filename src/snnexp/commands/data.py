"""snnexp data: fetch, verify and prepare a data set, or say exactly how to get it."""

import re

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from snnexp import config
from snnexp.composing import command_line, compose, conf
from snnexp.untrusted.text import say


def run(argv: list[str]) -> int:
    """List the data sets, or prepare the one that the command line names; return the exit code."""
    line = command_line.read_command_line(argv)
    if not line.flags and not any("dataset=" in word or "=" not in word for word in line.overrides):
        list_all()
        return 0
    compose.run("data", argv, job)
    return 0


def list_all() -> None:
    """Print each data set with the first line of its config file."""
    for path in sorted((conf.conf_dir() / "dataset").glob("*.yaml")):
        comments = [line.lstrip("# ").strip() for line in path.read_text().splitlines() if re.match(r"#(?! @)", line)]
        description = comments[0].removeprefix(f"{path.stem}: ") if comments else ""
        say(f"  {path.stem:<16} {description}")
    say("Fetch, verify and prepare one: snnexp data dataset=NAME [data_dir=DIR]")


def job(cfg: DictConfig) -> None:
    """Prepare one data set, or compare what is prepared with its checksums, and print its protocol, shape and splits."""
    from snnexp import parts
    from snnexp.data.cache_checksums import comparing_everything

    config.anchor_paths(cfg)
    settings = config.finish(cfg, dict(HydraConfig.get().runtime.choices))
    with comparing_everything() as compared:
        data = parts.make_data(settings, download=True)
    say(data.protocol)
    if left_out := data.left_out:
        say(f"{data.name}: {left_out}")
    names = data.classes or data.targets
    kind = "classes" if data.classes else "targets"
    listed = ", ".join([*names[:12], "..."] if len(names) > 12 else names)
    names_text = f"; {kind} ({len(names)}): {listed}" if names else ""  # video has neither
    say(f"  sample {' x '.join(map(str, data.shape))}{names_text}")
    if compared:
        say(f"  compared with their checksums: {len(compared)} prepared files, {sum(compared.values()) / 2**20:.1f} MiB")
    say(f"  splits {', '.join(f'{name} {count}' for name, count in data.splits.items())}")
