"""Batches of made stays."""

import numpy as np
import torch

from snnexp.data.stays.medical import Stays

Event = tuple[int, float]


def batch_of(stays: list[list[list[Event]]], minutes: list[list[float]] | None = None) -> Stays:
    """The batch of stays, each a list of sets, each a list of (variable, value); sets lie an hour apart unless `minutes` says where."""
    sets = [(len(events), n, s, events) for n, stay in enumerate(stays) for s, events in enumerate(stay)]
    sets.sort(key=lambda entry: entry[:3])
    events = [event for *_, of_set in sets for event in of_set]
    sizes, counts = np.unique([size for size, *_ in sets], return_counts=True)
    return Stays(
        variable=torch.tensor([variable for variable, _ in events]),
        value=torch.tensor([value for _, value in events], dtype=torch.float32),
        minute=torch.tensor([minutes[n][s] if minutes else 60.0 * s for _, n, s, _ in sets]),
        stay=torch.tensor([n for _, n, _, _ in sets]),
        place=torch.tensor([s for _, _, s, _ in sets]),
        lengths=torch.tensor([len(stay) for stay in stays]),
        runs=list(zip(sizes.tolist(), counts.tolist(), strict=True)),
        longest=max(map(len, stays)),
    )


def made_stays(count: int, variables: int, seed: int = 0, longest: int = 9) -> list[list[list[Event]]]:
    """Random stays of 1 to `longest` sets of 1 to 6 events."""
    random = np.random.default_rng(seed)
    return [
        [
            [(int(random.integers(variables)), float(random.standard_normal())) for _ in range(random.integers(1, 7))]
            for _ in range(random.integers(1, longest + 1))
        ]
        for _ in range(count)
    ]


def places_of(stays: Stays) -> dict[tuple[int, int], int]:
    """Where the set (stay, place) lies in a batch."""
    return {key: row for row, key in enumerate(zip(stays.stay.tolist(), stays.place.tolist(), strict=True))}
