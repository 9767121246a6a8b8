"""The recipe of the red team's runs: a small network with all that makes a state more than its weights."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import polstore

SAMPLES = 64


def build(device, lr=0.1, momentum=0.9, optimizer="sgd", batch_size=8, hidden=12, classes=4):
    generator = torch.Generator().manual_seed(7)  # the data must not depend on the run's seed
    inputs = torch.randn(SAMPLES, 6, generator=generator)
    labels = torch.randint(0, 4, (SAMPLES,), generator=generator)
    model = nn.Sequential(
        nn.Linear(6, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(hidden, 8),
        nn.ReLU(),
        nn.Linear(8, classes),
    ).to(device)
    if optimizer == "adam":
        trained_by = torch.optim.Adam(model.parameters(), lr=lr)
    else:
        trained_by = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(trained_by, step_size=5, gamma=0.5)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=batch_size, shuffle=True)
    return polstore.Training(model, trained_by, loader, extras={"scheduler": scheduler}, context=device)


def step(training, batches):
    inputs, labels = (tensor.to(training.context) for tensor in next(batches))
    loss = functional.cross_entropy(training.model(inputs), labels)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    training.extras["scheduler"].step()
    return loss
