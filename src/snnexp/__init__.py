"""snnexp: train, resume and judge spiking neural networks from one command."""

import warnings

__version__ = "0.1.0"

# PyTorch Geometric 2.8 compiles parts of itself with what torch 2.14 calls deprecated, which nobody who runs us can change.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
