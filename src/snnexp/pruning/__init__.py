"""Structural pruning: scores of channels, how many leave when, and the surgery that takes them out."""
