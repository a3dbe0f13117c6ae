"""snnexp data: fetch, verify and prepare a data set, or say exactly how to get it."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from snnexp import app, config


def run(argv: list[str]) -> int:
    """List the data sets, or prepare the one that the command line names."""
    line = app.read_command_line(argv)
    if not line.flags and not any("dataset=" in word or "=" not in word for word in line.overrides):
        list_all()
        return 0
    app.run("data", argv, job)
    return 0


def list_all() -> None:
    """Print each data set with the first line of its config file."""
    for path in sorted((app.conf_dir() / "dataset").glob("*.yaml")):
        comments = [text.lstrip("# ").strip() for text in path.read_text().splitlines() if text.startswith("#") and "@package" not in text]
        print(f"  {path.stem:<16} {comments[0] if comments else ''}")
    print("Fetch, verify and prepare one: snnexp data dataset=NAME [data_dir=DIR]")


def job(cfg: DictConfig) -> None:
    """Prepare one data set and say what it is."""
    from snnexp import build

    settings = config.finish(cfg, dict(HydraConfig.get().runtime.choices))
    data = build.data(settings, download=True)
    print(f"{data.name}: {data.protocol}")
    classes = ", ".join([*data.classes[:12], "..."] if len(data.classes) > 12 else data.classes)
    print(f"  sample {tuple(data.shape)}; {len(data.classes)} classes: {classes}")
    print(f"  splits {', '.join(f'{name} {count}' for name, count in data.splits.items())}")
