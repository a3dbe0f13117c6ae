"""The real recordings and images beside the repository, unpacked once for all tests."""

import subprocess
from pathlib import Path

import pytest

UNPACK = Path(__file__).parents[3] / "shared" / "data" / "unpack"


def real(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    if not UNPACK.exists():
        pytest.skip(f"the real data ({UNPACK}) is not on this machine")
    directory = tmp_path_factory.mktemp("real")
    subprocess.run([str(UNPACK), str(directory), name], check=True)
    return directory / name


@pytest.fixture(scope="session")
def real_nmnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real(tmp_path_factory, "nmnist_small")


@pytest.fixture(scope="session")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real(tmp_path_factory, "cifar10_jpg")
