"""What the hand-written loops of test_loops.py do in one step; each pass over the data has 6 batches."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import polstore


class Clock:
    """Counts steps: what a recipe needs to know in which step a pass over the data ends."""

    def __init__(self):
        self.steps = 0

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def build(device, scaler=False, accumulate=1, epochs=False):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(46, 6, generator=generator)
    dataset = TensorDataset(inputs, (inputs.sum(1) > 0).long())
    model = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.2), nn.Linear(10, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    extras = {"scheduler": scheduler}
    if epochs:
        extras["clock"] = Clock()
    if scaler:
        extras["scaler"] = torch.amp.GradScaler("cpu", init_scale=4.0)
    return polstore.Training(model, optimizer, DataLoader(dataset, batch_size=8, shuffle=True), extras, accumulate)


def train_on(training, batch):
    inputs, labels = batch
    loss = functional.cross_entropy(training.model(inputs), labels)
    scaler = training.extras.get("scaler")
    if scaler and inputs[0, 0] > 0.5:
        loss = loss * float("inf")
    (scaler.scale(loss) if scaler else loss).backward()
    return loss


def update(training):
    scaler = training.extras.get("scaler")
    if scaler:
        scaler.step(training.optimizer)
        scaler.update()
    else:
        training.optimizer.step()
    training.optimizer.zero_grad()
    if "clock" in training.extras:
        training.extras["clock"].steps += 1


def step(training, batches):
    training.model.train()
    for _ in range(training.context):
        loss = train_on(training, next(batches))
    update(training)
    if "clock" in training.extras and training.extras["clock"].steps % 6 == 0:
        training.extras["scheduler"].step()
    return loss
