"""Structural pruning: scores of channels, the schedule of how many to remove when, and the surgery that removes them."""
