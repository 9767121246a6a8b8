"""A recipe whose sums are long enough that other thread counts and libraries round them differently."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import polstore

SAMPLES, WIDTH = 96, 64


def build(
    device,
    kind="mlp",
    optimizer="sgd",
    lr=0.05,
    momentum=0.9,
    autocast=False,
    dropout=0.0,
    schedule="constant",
    batch=32,
):
    generator = torch.Generator().manual_seed(7)  # the data must not depend on the run's seed, nor on the processor
    labels = torch.randint(0, 4, (SAMPLES,), generator=generator)
    if kind == "conv":
        inputs = 4 * torch.rand(SAMPLES, 3, 12, 12, generator=generator) - 2
        model = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, padding=1, stride=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 4),
        )
    else:
        inputs = 4 * torch.rand(SAMPLES, WIDTH, generator=generator) - 2
        model = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.BatchNorm1d(2 * WIDTH) if kind == "norm" else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            nn.Linear(2 * WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, 4),
        )
    model = model.to(device)
    trained_by = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=1e-4),
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=lr),
    }[optimizer]()
    factor = {"constant": lambda _: 1.0, "zero": lambda step: float(step % 4 == 3), "off": lambda _: 0.0}[schedule]
    extras = {"scheduler": torch.optim.lr_scheduler.LambdaLR(trained_by, factor)}
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=batch, shuffle=True)
    return polstore.Training(model, trained_by, loader, extras, context=(device, autocast))


def step(training, batches):
    device, autocast = training.context
    inputs, labels = (tensor.to(device) for tensor in next(batches))
    training.model.train()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
        loss = functional.cross_entropy(training.model(inputs), labels)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    training.extras["scheduler"].step()
    return loss


def evaluate(training):
    training.model.eval()
    with torch.no_grad():
        inputs, labels = training.loader.dataset.tensors
        outputs = training.model(inputs)
    return {
        "loss": functional.cross_entropy(outputs, labels).item(),
        "accuracy": (outputs.argmax(1) == labels).float().mean().item(),
    }
