"""An independent witness that replay is exact: trains one recorded segment again without polstore's recorder or replay.

Reads the committed start state and the sample indices with polstore.open, restores model, optimizer and scheduler by
hand, seeds by hand, calls the recipe's own functions in a plain loop, writes down the state by hand, and prints the
hex state digest of the quantised result. A program of its own: ``python witness.py STORE RUN RECIPE SEGMENT``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
import sys
import warnings
from pathlib import Path

import msgpack
import numpy as np
import torch
from torch.utils.data import default_collate

import polstore
from polstore.codec.quantise import quantise


def main(store, name, recipe_path, index):
    with polstore.open(store) as archive:
        run = archive.run(name)
        record, steps, manifest = run.segment(index), run.steps(index), run.manifest
        start = run.state(record.start_step)
        base = None if record.base_step is None else run.state(record.base_step)
    torch.set_num_threads(record.environment.threads)
    recipe = load(recipe_path)
    training = recipe.build("cpu", **dict(manifest.recipe.config))
    restore(training, start, record.start_step)
    for number, step in enumerate(steps.steps, record.start_step):
        (microbatch,) = step.microbatches
        batch = default_collate([training.loader.dataset[i] for i in microbatch.ranks[0]])
        seed(manifest.seed, "step", number, 0, 0)
        loss = recipe.step(training, iter([batch]))
        assert float(loss) == step.loss, (number, float(loss), step.loss)
    end = quantise(written_down(training, record.end_step), base, manifest.fidelity)
    sys.stdout.write(end.digest().hex() + "\n")


def load(path):
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seed(run_seed, stream, *numbers):
    value = hashlib.sha256(msgpack.packb(["polstore/randomness/v1", run_seed, stream, list(numbers)])).digest()
    random.seed(value)
    np.random.seed([int.from_bytes(value[i : i + 4], "big") for i in range(0, 32, 4)])
    torch.manual_seed(int.from_bytes(value[:8], "big"))


def restore(training, state, step):
    """Put the tensors of a committed state into fresh objects; the scheduler gets there by its own steps."""
    values = {tensor.name: as_torch(tensor) for tensor in state.tensors}
    with torch.no_grad():
        for name, parameter in training.model.named_parameters():
            parameter.copy_(values.pop(f"parameter/{name}"))
        for name, buffer in training.model.named_buffers():
            buffer.copy_(values.pop(f"buffer/{name}"))
    parameters = dict(training.model.named_parameters())
    for path, value in values.items():
        kind, name, key = path.split("/")
        assert kind == "optimizer", path
        training.optimizer.state[parameters[name]][key] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the scheduler steps before the optimizer is what is wanted here
        for _ in range(step):
            training.extras["scheduler"].step()


def written_down(training, step):
    """Return the live state as a snapshot."""
    tensors = {}
    for name, parameter in training.model.named_parameters():
        tensors[f"parameter/{name}"] = parameter
    for name, buffer in training.model.named_buffers():
        tensors[f"buffer/{name}"] = buffer
    optimizer = training.optimizer
    names = {parameter: name for name, parameter in training.model.named_parameters()}
    groups = [{**group, "params": [names[p] for p in group["params"]]} for group in optimizer.param_groups]
    state = {"#groups": groups}
    for parameter, entries in optimizer.state.items():
        state[names[parameter]] = {}
        for key, value in entries.items():
            path = f"optimizer/{names[parameter]}/{key}"
            tensors[path] = value
            state[names[parameter]][key] = Named(path)
    extras = {name: extra.state_dict() for name, extra in training.extras.items()}
    scalars = msgpack.packb(["polstore/scalars/v1", step, tree(state), tree(extras)])
    ordered = sorted(tensors, key=str.encode)
    return polstore.Snapshot(tuple(as_committed(name, tensors[name]) for name in ordered), scalars)


class Named(str):
    """The name of a tensor, where it stands in a tree."""


def tree(value):
    """Return nested state as tagged arrays: 0 list, 1 tuple, 2 dictionary with sorted keys, 3 tensor."""
    if isinstance(value, Named):
        return [3, str(value)]
    if isinstance(value, list):
        return [0, *map(tree, value)]
    if isinstance(value, tuple):
        return [1, *map(tree, value)]
    if isinstance(value, dict):
        return [2, *([key, tree(value[key])] for key in sorted(value))]
    return value


def as_torch(tensor):
    dtype = {"float32": torch.float32, "int64": torch.int64}[tensor.dtype]
    return torch.tensor(tensor.data, dtype=dtype).reshape(tensor.shape)


def as_committed(name, tensor):
    array = tensor.detach().numpy().astype({torch.float32: "<f4", torch.int64: "<i8"}[tensor.dtype]).reshape(-1)
    return polstore.Tensor(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), array)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
