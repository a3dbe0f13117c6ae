"""Copies from the device to the host that nobody waits for until they are read."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class HostCopy:
    """Copies of tensors on their way to the host, through pinned memory; on the CPU they are there already."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        self._arrived = None if device is None else torch.cuda.current_stream(device).record_event()

    def read(self) -> list[np.ndarray]:
        """Wait until they have arrived, and return them as arrays, which do not keep the pinned memory."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [copy.numpy().copy() for copy in self._copies]
