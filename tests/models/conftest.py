"""Both implementations of the LIF."""

import pytest

from snnexp.models import lif_kernel


@pytest.fixture(params=["c", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel in C, then the same in torch operations."""
    if request.param == "torch":
        monkeypatch.setattr(lif_kernel, "load", lambda: None)
    elif lif_kernel.load() is None:
        pytest.skip(f"no compiled kernel here: {lif_kernel.reason()}")
    return request.param
