"""A small classifier with every optimizer, scheduler and wrapper that a configuration can name."""

import copy
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

import polstore

SAMPLES = 46  # not a multiple of the batch size: the last batch of a pass is short


class Points(Dataset):
    """Points of two classes; ``augment`` draws from all three generators for each sample."""

    def __init__(self, augment=False):
        generator = torch.Generator().manual_seed(5)
        self.inputs = torch.randn(SAMPLES, 6, generator=generator)
        self.labels = (self.inputs.sum(1) > 0).long()
        self.augment = augment

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        inputs = self.inputs[index]
        if self.augment:
            inputs = inputs + 0.1 * torch.randn(6) + random.random() + np.random.normal()
        return inputs, self.labels[index]


class Model(nn.Module):
    """Layers that keep more than trained weights."""

    def __init__(self, kind):
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.norm = nn.BatchNorm1d(12) if kind == "batchnorm" else nn.Identity()
        self.dropout = nn.Dropout(0.3) if kind in ("dropout", "batchnorm") else nn.Identity()
        self.second = nn.Linear(12, 12)
        self.third = nn.Linear(12, 2)
        self.kind = kind
        if kind == "tied":
            self.second.weight = nn.Parameter(torch.randn(12, 12) / 4)
            self.fourth = nn.Linear(12, 12)
            self.fourth.weight = self.second.weight
        if kind == "frozen":
            for parameter in self.first.parameters():
                parameter.requires_grad_(False)
        if kind == "buffers":
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))
            self.register_buffer("seen", torch.zeros(12, dtype=torch.bool))
            self.register_buffer("phase", torch.zeros(3, dtype=torch.complex64))
            self.register_buffer("hidden", torch.zeros(12), persistent=False)
            self.register_buffer("nothing", torch.zeros(0, 4))
            self.empty = nn.Parameter(torch.zeros(0, 3))
        if kind == "bfloat16":
            self.to(torch.bfloat16)
        if kind == "late":
            self.late = nn.Linear(12, 12)

    def forward(self, inputs):
        if self.kind == "bfloat16":
            inputs = inputs.to(torch.bfloat16)
        hidden = self.dropout(torch.relu(self.norm(self.first(inputs))))
        hidden = torch.relu(self.second(hidden))
        if self.kind == "tied":
            hidden = torch.relu(self.fourth(hidden))
        if self.kind == "buffers":
            self.count += 1
            self.seen |= hidden.detach().amax(0) > 0.5
            self.phase *= 1j
            self.phase += 1
            self.hidden = 0.9 * self.hidden + 0.1 * hidden.detach().mean(0)
            hidden = hidden + 0.1 * self.hidden
        if self.kind == "late" and inputs.sum() > 0:
            hidden = hidden + self.late(hidden)
        return self.third(hidden).float()


def resumed(parameters, lr):
    """AdamW with the moments of steps that it made before: along gradients drawn from the seed, of many sizes."""
    optimizer = torch.optim.AdamW(parameters, lr)
    for scale in (1e-2, 1.0, 1e-4):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn_like(parameter) * scale
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


OPTIMIZERS = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adam": lambda p, lr: torch.optim.Adam(p, lr, amsgrad=True),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr),
    "adamw_fused": lambda p, lr: torch.optim.AdamW(p, lr, fused=True),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr, centered=True, momentum=0.5),
    "adagrad": lambda p, lr: torch.optim.Adagrad(p, lr, lr_decay=0.01),
    "adagrad_accumulated": lambda p, lr: torch.optim.Adagrad(p, lr, initial_accumulator_value=0.1),
    "adamw_resumed": resumed,
    "adadelta": lambda p, lr: torch.optim.Adadelta(p, 1.0),
    "adamax": lambda p, lr: torch.optim.Adamax(p, lr),
    "nadam": lambda p, lr: torch.optim.NAdam(p, lr),
    "radam": lambda p, lr: torch.optim.RAdam(p, lr),
    "asgd": lambda p, lr: torch.optim.ASGD(p, lr, t0=2),
    "rprop": lambda p, lr: torch.optim.Rprop(p, lr),
    "tensor_lr": lambda p, lr: torch.optim.Adam(p, torch.tensor(lr)),
    "lbfgs": lambda p, lr: torch.optim.LBFGS(p, lr, max_iter=3, history_size=4),
}

lr_scheduler = torch.optim.lr_scheduler
SCHEDULERS = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "warmup": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 4)),  # lr 0 in the first step
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 9)], milestones=[3]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=30),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.05, step_size_up=3, cycle_momentum=False),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "zero": lambda o: lr_scheduler.LambdaLR(o, lambda step: float(step % 3 == 0)),
}


class Context:
    """What ``step`` needs to know."""

    def __init__(self, **settings):
        self.__dict__.update(settings)


def build(
    device,
    kind="plain",
    optimizer="momentum",
    lr=0.05,
    scheduler=None,
    workers=0,
    prefetch=None,
    persistent=False,
    augment=False,
    mixup=False,
    accumulate=1,
    clip=None,
    ema=False,
    autocast=False,
    scaler=False,
    groups=False,
    zero_to_none=True,
    explode=None,
    drop_last=False,
    twin=False,
):
    model = Model(kind).to(device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if groups:
        parameters = [{"params": parameters[:2], "lr": lr / 10, "weight_decay": 0.01}, {"params": parameters[2:]}]
    opt = OPTIMIZERS[optimizer](parameters, lr)
    extras = {}
    if scheduler:
        extras["scheduler"] = SCHEDULERS[scheduler](opt)
    if ema:
        extras["ema"] = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    if scaler:
        extras["scaler"] = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    if twin:  # a second model with an optimizer of its own, as GANs have
        other = copy.deepcopy(model)
        extras |= {"twin": other, "twin_optimizer": torch.optim.Adam(other.parameters(), lr)}
    loader = DataLoader(
        Points(augment),
        batch_size=8,
        shuffle=True,
        num_workers=workers,
        prefetch_factor=prefetch,
        persistent_workers=persistent,
        drop_last=drop_last,
    )
    context = Context(
        mixup=mixup,
        accumulate=accumulate,
        clip=clip,
        autocast=autocast,
        zero_to_none=zero_to_none,
        explode=explode,
        closure=optimizer == "lbfgs",
        per_loss=scheduler == "plateau",
    )
    return polstore.Training(model, opt, loader, extras, context)


def step(training, batches):
    context, extras, optimizer = training.context, training.extras, training.optimizer
    scaler = extras.get("scaler")
    optimizer.zero_grad(set_to_none=context.zero_to_none)
    for _ in range(context.accumulate):
        inputs, labels = next(batches)
        if context.mixup:
            share, order = np.random.beta(0.4, 0.4), torch.randperm(len(inputs))
            inputs = share * inputs + (1 - share) * inputs[order]
        if context.explode:
            inputs = inputs * context.explode
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=context.autocast):
            loss = functional.cross_entropy(training.model(inputs), labels) / context.accumulate
        if scaler and inputs[0, 0] > 0.7:
            loss = loss * float("inf")  # an overflow: the scaler skips this step
        if not context.closure:
            (scaler.scale(loss) if scaler else loss).backward()
    if context.clip:
        torch.nn.utils.clip_grad_norm_(training.model.parameters(), context.clip)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    elif context.closure:

        def closure():
            optimizer.zero_grad()
            value = functional.cross_entropy(training.model(inputs), labels)
            value.backward()
            return value

        optimizer.step(closure)
    else:
        optimizer.step()
    if "twin" in extras:
        extras["twin_optimizer"].zero_grad()
        functional.cross_entropy(extras["twin"](inputs), labels).backward()
        extras["twin_optimizer"].step()
    if "ema" in extras:
        extras["ema"].update_parameters(training.model)
    if "scheduler" in extras:
        extras["scheduler"].step(*([loss.detach()] if context.per_loss else []))
    return loss
