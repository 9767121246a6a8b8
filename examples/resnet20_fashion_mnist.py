"""ResNet-20 on Fashion-MNIST: the variant for small images of He et al., "Deep Residual Learning", section 4.2.

polstore record examples/resnet20_fashion_mnist.py --store runs --run resnet20 --every 50

The images come from Debian's package dataset-fashion-mnist, or from the directory in the environment variable
FASHION_MNIST; where they lie is no part of what is committed. Run with the file of weights that `polstore export`
wrote, this script prints their accuracy on the test images:

python examples/resnet20_fashion_mnist.py weights.safetensors
"""

import gzip
import math
import os
import struct
import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import polstore

DEBIAN = "/usr/share/datasets/fashion-mnist"  # where the package dataset-fashion-mnist puts the files
SIDE = 28  # pixels
CLASSES = 10
MEAN, SPREAD = 0.2860, 0.3530  # of the training images' pixels, which lie between 0 and 1
SHIFT = 2  # pixels that augmentation moves an image by, at most


def build(device, *, batch_size=128, lr=0.1, total_steps=9380, augment=False, images=60_000):
    """Train on the first `images` images. `total_steps`, twenty passes over all, says where the learning rate falls."""
    model = ResNet20().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    milestones = [total_steps // 2, total_steps * 3 // 4]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    loader = DataLoader(load("train", images), batch_size=batch_size, shuffle=True)
    context = {"device": device, "augment": augment}
    return polstore.Training(model, optimizer, loader, extras={"scheduler": scheduler}, context=context)


def step(training, batches):
    images, labels = next(batches)
    images = normalise(images)
    if training.context["augment"]:
        images = shift_and_flip(images)
    device = training.context["device"]
    loss = functional.cross_entropy(training.model(images.to(device)), labels.to(device))
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    training.extras["scheduler"].step()
    return loss


class Block(nn.Module):
    """Two convolutions around which the input is added; where it shrinks, the shortcut drops pixels and adds zeros."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = outputs - inputs

    def forward(self, x):
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return functional.relu(y + shortcut)


class ResNet20(nn.Module):
    """269 434 parameters: one convolution, three stages of three blocks, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        sizes = [(16, 16, 1), (16, 16, 1), (16, 16, 1)]
        sizes += [(16, 32, 2), (32, 32, 1), (32, 32, 1)]
        sizes += [(32, 64, 2), (64, 64, 1), (64, 64, 1)]
        self.blocks = nn.Sequential(*(Block(*size) for size in sizes))
        self.linear = nn.Linear(64, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images):
        x = functional.relu(self.norm(self.conv(images)))
        return self.linear(self.blocks(x).mean(dim=(2, 3)))


def normalise(images):
    return (images.float() / 255 - MEAN) / SPREAD


def shift_and_flip(images):
    """Move each image by up to SHIFT pixels and mirror every other one; the draws follow from the run's seed."""
    count = len(images)
    black = -MEAN / SPREAD
    windows = functional.pad(images, (SHIFT,) * 4, value=black).unfold(2, SIDE, 1).unfold(3, SIDE, 1)
    down, right = torch.randint(2 * SHIFT + 1, (2, count))
    images = windows[torch.arange(count), :, down, right]
    mirrored = torch.rand(count) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def load(part, count):
    """Return the first `count` images (uint8, 1 x 28 x 28 each) and labels of `part`: train or t10k."""
    directory = Path(os.environ.get("FASHION_MNIST") or DEBIAN)
    images = read_idx(directory, f"{part}-images-idx3-ubyte", 3)
    labels = read_idx(directory, f"{part}-labels-idx1-ubyte", 1)
    if images.shape[1:] != (SIDE, SIDE) or len(images) != len(labels) or int(labels.max()) >= CLASSES:
        raise ValueError(f"{directory}: {part} is not Fashion-MNIST: {tuple(images.shape)} and {tuple(labels.shape)}")
    return TensorDataset(images[:count].unsqueeze(1), labels[:count].long())


def read_idx(directory, name, dimensions):
    """Read an idx file, plain or gzipped: the bytes 0, 0, 8 (for uint8), the dimensions, their sizes, the elements."""
    plain, packed = directory / name, directory / f"{name}.gz"
    if plain.is_file():
        path, data = plain, plain.read_bytes()
    elif packed.is_file():
        path = packed
        try:
            data = gzip.decompress(packed.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{packed} is damaged: {error}") from error
    else:
        raise FileNotFoundError(
            f"no {name} or {name}.gz in {directory}; install Debian's package dataset-fashion-mnist, "
            "or name the directory that has the files in the environment variable FASHION_MNIST"
        )
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path} is no idx file of bytes in {dimensions} dimensions: it begins with {data[:4].hex()}")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    expected = start + math.prod(shape)
    if expected == start or len(data) != expected:
        raise ValueError(f"{path} has {len(data)} bytes; its header, {shape}, says {expected}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).view(shape)


def accuracy(weights):
    """Return the share of test images that a model with these weights, a safetensors file, gets right."""
    model = ResNet20().eval()
    model.load_state_dict(load_file(weights))
    right = total = 0
    with torch.inference_mode():
        for images, labels in DataLoader(load("t10k", 10_000), batch_size=500):
            right += int((model(normalise(images)).argmax(dim=1) == labels).sum())
            total += len(labels)
    return right / total


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/resnet20_fashion_mnist.py weights.safetensors")
    print(f"test accuracy {accuracy(sys.argv[1]):.4f}")
