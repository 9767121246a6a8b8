"""An ordinary training script, recorded by two lines of it; a third lets the verifier rebuild the initial state.

python examples/train_loop.py [STORE]

Interrupted and started again, it goes on from the last snapshot; `rec.epoch` is where the loop has to begin.

The script is the recipe as well: it has the functions `build` and `step`, which polverify calls to replay it, and the
loop below uses them itself. What is not under `if __name__` runs in both.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import polstore  # 1 of 2: this line is new

SEED = 1
EPOCHS = 3


def build(device):
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), batch_size=64, shuffle=True)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return polstore.Training(model, optimizer, loader)


def step(training, batches):
    return train_step(training.model, training.optimizer, *next(batches))


def train_step(model, optimizer, images, labels):
    loss = functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def main():
    store = sys.argv[1] if len(sys.argv) > 1 else "runs"
    polstore.seed_initial(SEED)  # in place of torch.manual_seed(SEED)
    training = build("cpu")
    model, optimizer, loader = training.model, training.optimizer, training.loader

    with polstore.record(  # 2 of 2: this line is new
        model, optimizer, loader, every=20, store=store, run="loop", seed=SEED, initial="seed", resume=True
    ) as rec:
        for epoch in range(rec.epoch, EPOCHS):
            total = 0.0
            for images, labels in loader:
                total += train_step(model, optimizer, images, labels).item()
            print(f"epoch {epoch + 1}: loss {total / len(loader):.3f}")
    print(f"recorded run loop: {rec.steps_done} steps, in {store}")


if __name__ == "__main__":
    main()
