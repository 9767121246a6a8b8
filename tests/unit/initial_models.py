"""Freshly built models of many kinds, by PyTorch's own initialisations: what an honest initial state may be."""

from __future__ import annotations

import math

import torch
from torch import nn

WIDTHS = (8, 12, 16, 20)


def mlp(width):
    return nn.Sequential(
        nn.Linear(10, 4 * width), nn.ReLU(), nn.Linear(4 * width, 2 * width), nn.Tanh(), nn.Linear(2 * width, 5)
    )


def convolutions(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, groups=2, bias=False),
        nn.GroupNorm(2, 2 * width),
        nn.ConvTranspose2d(2 * width, width, 2),
        nn.Flatten(),
        nn.Linear(9 * width, 10),
    )


def recurrent(width):
    return nn.ModuleDict(
        {"lstm": nn.LSTM(7, width, 2, bidirectional=True), "gru": nn.GRU(5, width), "out": nn.Linear(width, 3)}
    )


def transformer(width):
    return nn.ModuleDict(
        {
            "tokens": nn.Embedding(50, 2 * width, padding_idx=0),
            "block": nn.TransformerEncoderLayer(2 * width, 2, 4 * width),
            "mixed": nn.MultiheadAttention(2 * width, 2, kdim=width, vdim=width),
            "pair": nn.Bilinear(width, width, 4),
        }
    )


KINDS = (mlp, convolutions, recurrent, transformer)


def _each(model, change):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                change(parameter)
    return model


INITS = {
    "default": lambda model: model,
    "kaiming_uniform": lambda model: _each(model, lambda p: nn.init.kaiming_uniform_(p, nonlinearity="relu")),
    "kaiming_normal": lambda model: _each(model, lambda p: nn.init.kaiming_normal_(p, mode="fan_out")),
    "xavier_uniform": lambda model: _each(model, nn.init.xavier_uniform_),
    "xavier_normal": lambda model: _each(model, lambda p: nn.init.xavier_normal_(p, gain=5 / 3)),
    "normal": lambda model: _each(model, lambda p: nn.init.normal_(p, std=0.02)),
    "depth": lambda model: _each(model, lambda p: nn.init.normal_(p, std=0.02 / math.sqrt(2 * 12))),
    "truncated": lambda model: _each(model, lambda p: nn.init.trunc_normal_(p, std=0.02)),
    "cut": lambda model: _each(model, lambda p: nn.init.trunc_normal_(p, std=0.05, a=-0.1, b=0.1)),
    "lecun": lambda model: _each(model, lambda p: nn.init.kaiming_normal_(p, nonlinearity="linear")),
    "uniform": lambda model: _each(model, lambda p: nn.init.uniform_(p, -0.1, 0.1)),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "float16": lambda model: model.to(torch.float16),
    "float64": lambda model: model.to(torch.float64),
}


def honest_model(number):
    """Return honest model ``number`` and what it is: every kind meets every initialisation in turn."""
    torch.manual_seed(number)
    kind = KINDS[number % len(KINDS)]
    name = list(INITS)[(number // len(KINDS)) % len(INITS)]
    return INITS[name](kind(WIDTHS[(number // 3) % len(WIDTHS)])), f"{kind.__name__}, {name}"
