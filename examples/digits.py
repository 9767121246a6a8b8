"""A small CNN on the UCI digits that ship with scikit-learn: the recipe of `make demo`.

polstore record examples/digits.py --store runs --run digits --every 50 --steps 400
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import polstore


def build(device, width=24, batch_size=64, lr=0.05):
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(2 * width * 16, 10),
    ).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2000)
    loader = DataLoader(TensorDataset(images, labels), batch_size=batch_size, shuffle=True)
    return polstore.Training(model, optimizer, loader, extras={"scheduler": scheduler}, context=device)


def step(training, batches):
    images, labels = (tensor.to(training.context) for tensor in next(batches))
    loss = functional.cross_entropy(training.model(images), labels)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    training.extras["scheduler"].step()
    return loss


def evaluate(training):
    training.model.eval()
    images, labels = (tensor.to(training.context) for tensor in training.loader.dataset.tensors)
    with torch.no_grad():
        outputs = training.model(images)
    return {
        "loss": functional.cross_entropy(outputs, labels).item(),
        "accuracy": (outputs.argmax(1) == labels).float().mean().item(),
    }
