"""A recipe whose step changes the state before it takes a batch: it counts, and trains the first layer only later."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import polstore


def build(device):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    model.register_buffer("steps", torch.tensor(0))
    loader = DataLoader(TensorDataset(torch.arange(30.0).view(10, 3) / 30), batch_size=4, shuffle=True)
    return polstore.Training(model, torch.optim.Adam(model.parameters(), 0.01), loader, {})


def step(training, batches):
    model = training.model
    model.steps += 1
    model[0].requires_grad_(bool(model.steps > 3))  # frozen at first
    loss = model(next(batches)[0]).square().mean()
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    return loss
