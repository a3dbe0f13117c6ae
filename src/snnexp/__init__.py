"""snnexp: train, resume and judge spiking neural networks from one command."""

__version__ = "0.1.0"
