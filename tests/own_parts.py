"""Parts of a run as a user writes them, which a test may spoil."""

import torch
from torch import nn

from snnexp.contracts import Logger, Schedule, Task, Tracker


class OwnModel(nn.Module):
    """Events or images to outputs [T, N, K]; `change` spoils them."""

    change = staticmethod(lambda output: output)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(256, num_classes)

    def forward(self, x):
        return self.change(self.linear(x.mean(-3).flatten(-2)))


class OwnTask(Task):
    """Cross entropy; the attributes spoil what its verbs return."""

    monitor, modes = "Loss", {"Loss": "min"}
    result = pair = sums = columns = values = staticmethod(lambda value: value)

    def outputs(self, data):
        return len(data.classes)

    def loss(self, model, batch, step):
        output = model(batch[0]).mean(0)
        return self.pair((nn.functional.cross_entropy(output, batch[1]), output))

    def counts(self, loss, output, batch):
        return self.sums({"n": torch.tensor(float(len(batch[1]))), "Loss": loss * len(batch[1])})

    def metrics(self, counts):
        return self.values({"Loss": counts["Loss"] / counts["n"]})

    def predict(self, output, batch):
        return self.columns((output.argmax(1), batch[1]))


class OwnTracker(Tracker):
    """Counts the steps."""

    def __init__(self) -> None:
        self.seen = 0

    def observe(self, split):
        pass

    def stepped(self, step):
        self.seen = step
        return {"Own/Steps": step}

    def close_epoch(self, epoch):
        return {"Own/Steps": [self.seen, 0.5]}

    def state_dict(self):
        return {"seen": self.seen}


class OwnLogger(Logger):
    """Draws nothing."""

    def scalars(self, values, epoch):
        pass


class OwnSchedule(Schedule):
    """Keeps the rate."""

    def factor(self, done, epochs):
        return 1.0
