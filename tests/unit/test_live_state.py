"""The whole state of a training: captured and restored without a difference, or refused."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
from torch import nn

from polstore.codec.live import environment
from polstore.codec.live.arrays import same_bits, to_host, to_torch
from polstore.codec.live.capture import Capture
from polstore.codec.live.state import LiveState, _to_device, hyperparameters, loss_value
from polstore.codec.norms import distances
from polstore.codec.quantise import quantise
from polstore.errors import MalformedError, TrainingError
from polstore.wire import canonical
from polstore.wire.environment import Environment


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.conv = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
        self.turned = nn.Parameter(torch.randn(4, 3).t())
        self.register_buffer("hidden", torch.randn(2), persistent=False)
        self.register_buffer("phase", torch.randn(2, dtype=torch.complex64))
        self.register_buffer("nothing", torch.empty(0, 2))

    def forward(self, inputs):
        image = inputs.repeat(1, 6).reshape(-1, 2, 3, 3)
        return self.norm(self.first(inputs) + self.conv(image).flatten(1)) @ self.turned.t()


def training(optimizer=torch.optim.AdamW, seed=0):
    torch.manual_seed(seed)
    model = Model()
    opt = optimizer(model.parameters(), 0.01)
    return model, opt, {"scheduler": torch.optim.lr_scheduler.StepLR(opt, 2)}


def train(model, opt, extras, steps=3):
    for number in range(steps):
        loss = model(torch.randn(5, 3, generator=torch.Generator().manual_seed(number))).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        extras["scheduler"].step()


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD])
def test_a_restored_state_is_the_captured_one_and_trains_on_alike(optimizer):
    one, other = training(optimizer), training(optimizer, seed=1)
    train(*one)
    snapshot = LiveState(*one).capture(3)
    live = LiveState(*other)
    assert live.capture(3).digest() != snapshot.digest()
    assert live.restore(snapshot) == 3
    assert live.capture(3).digest() == snapshot.digest()
    assert live.capture(4).digest() != snapshot.digest()
    train(*one), train(*other)
    assert live.capture(6).digest() == LiveState(*one).capture(6).digest()


def test_restoring_keeps_the_layout_in_memory_and_the_order_of_the_optimizers_state():
    one, other = training(), training(seed=1)
    train(*one)
    LiveState(*other).restore(LiveState(*one).capture(3))
    places = {id(p): name for name, p in one[0].named_parameters()}
    names = {id(p): name for name, p in other[0].named_parameters()}
    assert [names[id(p)] for p in other[1].state] == [places[id(p)] for p in one[1].state]
    for mine, theirs in zip(one[1].state.values(), other[1].state.values(), strict=True):
        assert mine["exp_avg"].stride() == theirs["exp_avg"].stride()


@pytest.mark.parametrize(
    "change", [lambda kept: -kept, lambda kept: kept[:2], lambda kept: kept.double(), lambda _: 0.0]
)
def test_a_state_that_is_not_taken_over_to_the_bit_is_refused(change):
    class Forgetful:
        def __init__(self):
            self.kept = torch.zeros(3)

        def state_dict(self):
            return {"kept": self.kept}

        def load_state_dict(self, state):
            self.kept = change(state["kept"])  # for one, zeros become -0.0: equal, and other bits

    model = torch.nn.Linear(2, 2)
    live = LiveState(model, torch.optim.SGD(model.parameters(), lr=0.1), {"memory": Forgetful()})
    with pytest.raises(TrainingError, match="did not survive"):
        live.restore(live.capture(0))


def test_state_in_lists_goes_to_the_parameters_device():
    value = {"old_dirs": [torch.ones(3), None], "pair": (torch.ones(1), [torch.ones(1)]), "al": [None, 2]}
    parameter = nn.Parameter(torch.empty(3, 4, device="meta"))
    put = {key: _to_device(key, item, parameter, {}) for key, item in value.items()}
    assert [put["old_dirs"][0].device.type, put["pair"][0].device.type, put["pair"][1][0].device.type] == ["meta"] * 3
    assert (put["old_dirs"][1], put["al"], type(put["pair"])) == (None, [None, 2], tuple)


def test_restoring_drops_gradients():
    one = training()
    train(*one)
    live = LiveState(*one)
    live.restore(live.capture(3))
    assert all(parameter.grad is None for parameter in one[0].parameters())


def test_a_snapshot_is_a_copy():
    one = training()
    snapshot = LiveState(*one).capture(0)
    digest = snapshot.digest()
    train(*one)
    assert snapshot.digest() == digest


def test_everything_has_its_name():
    one = training()
    train(*one)
    names = {tensor.name for tensor in LiveState(*one).capture(3).tensors}
    assert {
        "parameter/turned",
        "buffer/hidden",
        "buffer/nothing",
        "buffer/norm.running_mean",
        "optimizer/conv.weight/exp_avg_sq",
        "optimizer/conv.weight/step",
    } <= names


def test_capturing_makes_the_live_state_the_committed_one():
    one = training()
    live = LiveState(*one)
    base = live.capture(0)
    train(*one)
    before = live.capture(3)
    captured = Capture("float16-writeback").take(*live.walk(3), base)
    assert captured.committed.digest() == quantise(before, base, "float16-writeback").digest() != before.digest()
    assert live.capture(3).digest() == captured.committed.digest()
    assert one[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert one[0].turned.stride() == (1, 3)


def test_what_was_made_in_inference_mode_has_no_version():
    model, opt, _ = training()
    live = LiveState(model, opt, {})
    model.hidden = made_in_inference_mode()
    before = live.versions()
    with torch.no_grad():
        model.first.weight += 1
    assert live.versions() > before


def test_versions_grow_with_every_write_and_gradient_versions_with_every_gradient():
    model, opt, extras = training()
    live = LiveState(model, opt, extras)
    before, gradients = live.versions(), live.gradient_versions()
    model.eval()
    model(torch.randn(2, 3))
    assert (live.versions(), live.gradient_versions()) == (before, gradients)
    model(torch.randn(2, 3)).sum().backward()
    assert live.gradient_versions() != gradients
    gradients = live.gradient_versions()
    model(torch.randn(2, 3)).sum().backward()
    assert live.gradient_versions() != gradients
    assert live.versions() == before
    model.train()
    model(torch.randn(2, 3))
    assert live.versions() > before
    live.drop_gradients()
    assert live.gradient_versions() == ()


class Extra:
    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


class Keyed(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        self.state["global"] = {"count": 1}


def refuse_extra(value):
    def make():
        model, opt, _ = training()
        return LiveState(model, opt, {"extra": Extra(value)}).capture(0)

    return make


def refuse_outside():
    model = nn.Linear(2, 2)
    loose = torch.randn(2, requires_grad=True)
    return LiveState(model, torch.optim.SGD([*model.parameters(), loose], 0.1), {}).capture(0)


def refuse_keyed():
    model = nn.Linear(2, 2)
    opt = Keyed(model.parameters(), 0.1)
    model(torch.randn(1, 2)).sum().backward()
    opt.step()
    return LiveState(model, opt, {}).capture(0)


def refuse_shared():
    model = nn.Linear(2, 2)
    return LiveState(model, torch.optim.SGD(model.parameters(), 0.1), {"model": model}).capture(0)


def refuse_tied_data():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight.data = model[0].weight.data
    return LiveState(model, torch.optim.SGD(model.parameters(), 0.1), {}).capture(0)


def refuse_model(model):
    return lambda: LiveState(model, torch.optim.SGD([torch.randn(1)], 0.1), {}).capture(0)


def buffered(tensor):
    model = nn.Linear(2, 2)
    model.register_buffer("extra", tensor)
    return lambda: LiveState(model, torch.optim.SGD(model.parameters(), 0.1), {}).capture(0)


def made_in_inference_mode():
    with torch.inference_mode():
        return torch.ones(3)


def nested_lists():
    value = []
    for _ in range(32):
        value = [value]
    return value


def list_in_itself():
    value = []
    value.append(value)
    return value


def refuse_ragged():
    with pytest.warns(UserWarning, match="prototype"):
        ragged = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
    refuse_extra({"x": ragged})()


REFUSED = {
    "0.weight and parameter/1.weight are the same memory": refuse_tied_data,
    "under no_grad, got inference mode": buffered(made_in_inference_mode()),
    "memory for every element": buffered(torch.arange(3).expand(2, 3)),
    "deeper than 32": refuse_extra({"x": nested_lists()}),
    "recursion depth": refuse_extra({"x": list_in_itself()}),
    "scalars of the state: expected at most 16777216 bytes": refuse_extra({"x": "x" * (16 << 20)}),
    "surrogates": refuse_extra({"\ud800": 1}),
    "nested, torch.float32": refuse_ragged,
    "state of extra extra: expected a dictionary, got list": refuse_extra([1]),
    "cannot be committed.*builtins.object": refuse_extra({"x": object()}),
    "cannot be committed.*64 bits": refuse_extra({"x": 2**70}),
    "no part of the state": refuse_outside,
    "beside its parameters": refuse_keyed,
    "same memory": refuse_shared,
    "values, got none yet": refuse_model(nn.LazyLinear(3)),
    "values, got none": refuse_model(nn.Linear(2, 2, device="meta")),
    "a dense tensor": buffered(torch.eye(2).to_sparse()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_states_that_cannot_be_recorded_are_refused(message):
    with pytest.raises(TrainingError, match=message):
        REFUSED[message]()


def other_shape(model, opt, _):
    model.hidden = torch.zeros(3)


def other_dtype(model, opt, _):
    model.hidden = model.hidden.double()


def further_buffer(model, opt, _):
    model.register_buffer("more", torch.zeros(1))


def fewer_buffers(model, opt, _):
    model.hidden = None


def further_group(model, opt, _):
    opt.add_param_group({"params": []})


def further_hyperparameter(model, opt, _):
    opt.param_groups[0]["more"] = 1


def further_entry(model, opt, extras):
    extras["scheduler"].more = 1


CHANGES = {
    r"tensor buffer/hidden .*expected \(\(2,\), torch.float32\), got \(\(3,\)": other_shape,
    "tensor buffer/hidden .*float64": other_dtype,
    "tensor buffer/more .*expected none": further_buffer,
    "tensor buffer/hidden .*got none": fewer_buffers,
    "optimizer's group 1 changed": further_group,
    "hyperparameters of the optimizer's group 0 changed": further_hyperparameter,
    "entries of extra scheduler changed": further_entry,
}


@pytest.mark.parametrize("message", CHANGES)
def test_what_would_keep_a_snapshot_from_being_restored_is_refused_when_it_is_taken(message):
    objects = training()
    live = LiveState(*objects)
    live.capture(0)
    train(*objects)  # the optimizer makes its state
    live.capture(3)
    CHANGES[message](*objects)
    with pytest.raises(TrainingError, match=message):
        live.capture(3)


def test_extras_without_a_state_are_refused():
    model, opt, _ = training()
    with pytest.raises(TrainingError, match="extra thing has no state"):
        LiveState(model, opt, {"thing": object()})


def test_parameters_of_an_extra_may_be_optimized():
    model, loss = nn.Linear(2, 2), nn.Linear(2, 1)
    parts = (model, torch.optim.Adam([*model.parameters(), *loss.parameters()], 0.1), {"loss": loss})
    loss(model(torch.randn(3, 2))).sum().backward()
    parts[1].step()
    snapshot = LiveState(*parts).capture(1)
    other = copy.deepcopy(parts)
    with torch.no_grad():
        other[2]["loss"].weight.zero_()
    LiveState(*other).restore(snapshot)
    assert torch.equal(other[2]["loss"].weight, loss.weight)


@pytest.mark.parametrize(
    "change",
    [
        lambda model, opt, extras: (nn.Linear(3, 4), opt, extras),
        lambda model, opt, extras: (model, torch.optim.SGD(model.parameters(), 0.01), extras),
        lambda model, opt, extras: (model, opt, {}),
        lambda model, opt, extras: (model, opt, {**extras, "more": Extra({})}),
        lambda model, opt, extras: (model, opt, {"scheduler": Extra({"other": 1})}),
        lambda model, opt, extras: (model.double(), opt, extras),
        lambda model, opt, extras: (model, torch.optim.AdamW([{"params": [p]} for p in model.parameters()]), extras),
    ],
)
def test_restoring_into_something_else_is_refused(change):
    one = training()
    train(*one)
    with pytest.raises(TrainingError):
        LiveState(*change(*training())).restore(LiveState(*one).capture(3))


def test_a_snapshot_with_other_scalars_is_refused():
    live = LiveState(*training())
    snapshot = live.capture(0)
    for scalars in (b"", canonical.encode(("polstore/scalars/v1", 0, None, None)), canonical.encode(("x", 0, 0, 0))):
        with pytest.raises((MalformedError, TrainingError)):
            live.restore(type(snapshot)(snapshot.tensors, scalars))


TENSORS = {
    "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
    "negated": torch.randn(3, dtype=torch.complex64).conj().imag,
    "transposed": torch.randn(3, 4).t(),
    "expanded": torch.randn(1, 3).expand(2, 3),
    "scalar": torch.tensor(True),
    "empty": torch.empty(0, 3, dtype=torch.float64),
    "bfloat16": torch.randn(3).to(torch.bfloat16),
    "NaN with a payload": torch.from_numpy(np.array([0x7FC12345, 0xFF800001], np.uint32).view(np.float32)),
    "small float": torch.randn(4).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_tensors_come_back_bit_for_bit(tensor):
    host = to_host("x", tensor)
    again = to_torch(host)
    assert (again.shape, again.dtype) == (tensor.shape, tensor.dtype)
    plain = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    assert host.data.tobytes() == bytes(plain.view(torch.uint8).tolist())
    assert to_host("x", again).data.tobytes() == host.data.tobytes()
    assert same_bits(tensor, host)


def test_the_default_device_is_not_where_snapshots_go():
    with torch.device("meta"):
        assert {to_torch(to_host("x", tensor)).device.type for tensor in TENSORS.values()} == {"cpu"}


def test_hyperparameters_are_numbers_without_the_parameters():
    model = nn.Linear(2, 2)
    opt = torch.optim.Adam([{"params": [model.weight], "lr": torch.tensor(0.5)}, {"params": [model.bias]}], 0.25)
    first, second = map(dict, hyperparameters(opt))
    assert "params" not in first
    assert (second["lr"], second["betas"]) == (0.25, (1, 0.9, 0.999))
    assert first["lr"] == (3, 0.5)  # a tensor, and its value


def test_losses_are_floats():
    assert loss_value(None) is None
    assert loss_value(torch.tensor([2.0], requires_grad=True)) == 2.0
    assert loss_value(1) == 1.0
    with pytest.raises(TrainingError, match=r"loss: expected a tensor of one element, got one of shape \(2,\)"):
        loss_value(torch.ones(2))


def test_a_hyperparameter_of_several_elements_is_refused():
    opt = torch.optim.SGD([torch.ones(1)], 0.1)
    opt.param_groups[0]["weights"] = torch.ones(3)
    with pytest.raises(TrainingError, match=r"optimizer/weights: expected a tensor of one element"):
        hyperparameters(opt)


def test_norms_are_those_of_the_definition():
    one = training()
    live = LiveState(*one)
    start = live.capture(0)
    before = torch.cat([p.detach().clone().reshape(-1) for _, p in sorted(one[0].named_parameters())]).double()
    train(*one)
    after = torch.cat([p.detach().reshape(-1) for _, p in sorted(one[0].named_parameters())]).double()
    got, difference = distances(start, live.capture(3)), after - before
    assert got.l1 == pytest.approx(difference.abs().sum().item(), rel=1e-12)
    assert got.l2 == pytest.approx(difference.norm().item(), rel=1e-12)
    assert got.linf == difference.abs().max().item()
    cosine = (before @ after / before.norm() / after.norm()).item()
    assert got.cos == pytest.approx(1 - cosine, abs=1e-12)


# The environment class


def test_an_environment_can_be_entered_and_left():
    before = environment.detect("cpu")
    assert before.differences(before) == []
    try:
        changed = dict(before.flags) | {"float32_matmul_precision": "medium", "deterministic_algorithms": "true"}
        wanted = Environment(
            before.device, before.device_name, before.torch, before.capability, 1, tuple(sorted(changed.items()))
        )
        assert environment.enter(wanted, "cpu") == wanted
        assert torch.get_num_threads() == 1
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        assert environment.enter(before, "cpu") == before


def test_only_known_settings_with_known_values_are_entered():
    before = environment.detect("cpu")
    flags = dict(before.flags) | {"float32_matmul_precision": "none", "onednn": "maybe", "home": "/tmp", "zzz": "1"}
    try:
        hostile = Environment("cpu", "x", "y", "z", 10**6, tuple(sorted(flags.items())))
        assert environment.enter(hostile, "cpu") == before
        assert hostile.differences(before)
        assert "zzz" not in os.environ
    finally:
        environment.enter(before, "cpu")
