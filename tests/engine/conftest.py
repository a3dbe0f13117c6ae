"""A whole experiment on a tiny model, built in this process."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from conftest import TINY, composed
from snnexp import build
from snnexp.build import Experiment
from snnexp.engine.distributed import Ranks
from snnexp.engine.terminal import Terminal
from snnexp.rundir import claim, write_json


@pytest.fixture
def make(data_dir: Path, tmp_path: Path) -> Iterator[Callable[..., Experiment]]:
    """Build the experiment of `base` and more settings; called again with the same name it is the same run, started anew."""
    made: list[Experiment] = []

    def make(*overrides: str, name: str = "run", rank: int = 0, world: int = 1, base: Sequence[str] = TINY) -> Experiment:
        settings = composed(*base, f"data_dir={data_dir}", *overrides)
        run = claim(tmp_path, name, exclusive=True) if not (tmp_path / name).exists() else type(made[0].run)(tmp_path / name)
        write_json(run.config, settings)
        x = build.experiment(run, settings, Ranks(rank, world, torch.device("cpu")), Terminal(run.train_log, main=rank == 0))
        made.append(x)
        return x

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make
    torch.set_num_threads(threads)
    for x in made:
        x.close()
        x.terminal.close()
