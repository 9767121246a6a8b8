"""The recipe of the workloads `gpt` and `finetune`: the GPT of ``examples/``, trained whole or in its last blocks.

Nobody replays what a benchmark records, so that the model comes from another file does no harm here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polstore.codec.live.recipe import RecipeFile, Training

if TYPE_CHECKING:
    from collections.abc import Iterator

GPT = RecipeFile.read(Path(__file__).resolve().parents[3] / "examples" / "gpt.py").load()


def build(device: str, *, trained_blocks: int = 0, second_beta: float = 0.95, **config: Any) -> Training:
    """Build the GPT; ``trained_blocks`` above 0 freezes everything but so many last blocks and the head."""
    training = GPT.build(device, config)
    model: Any = training.model
    if not trained_blocks:
        for group in training.optimizer.param_groups:
            group["betas"] = (0.9, second_beta)
        return training
    for parameter in model.parameters():
        parameter.requires_grad = False
    for module in (*model.blocks[-trained_blocks:], model.norm, model.head):
        for parameter in module.parameters():
            parameter.requires_grad = True
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, second_beta))
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return Training(model, optimizer, training.loader, extras={"scheduler": scheduler}, context=device)


def step(training: Training, batches: Iterator[Any]) -> Any:
    """Train one step, as the example does."""
    return GPT.step(training, batches)
