"""The settings under which a replay rounds differently: what they change, and that nothing of them stays."""

import pytest
import torch
from torch import nn

from polstore.codec.live.environment import detect
from polverify.replay.settings import ROUNDING, Setting, applied, settings_for

HERE = detect("cpu")


def step(dtype=torch.float32, batch=8):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        loss = model(torch.rand(batch, 2, 6, 6)).square().sum()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()], torch.rand(3)


def under(setting, *arguments, **options):
    with applied(setting, HERE, HERE):
        return step(*arguments, **options)[0]


def test_rounding_noise_reaches_every_gradient_and_is_small():
    honest, _ = step()
    found = [under(setting) for setting in ROUNDING]
    for other in found:
        for ours, theirs in list(zip(honest, other, strict=True))[1:]:
            if ours.norm() < 1e-3:  # the bias in front of the normalisation: its true gradient is zero
                continue
            assert not torch.equal(ours, theirs)
            assert (ours - theirs).norm() < 1e-4 * ours.norm()
    assert not torch.equal(found[0][-1], found[1][-1])


def test_few_results_of_sixteen_bits_are_rounded_the_other_way():
    honest, _ = step(torch.bfloat16, batch=512)
    other = under(ROUNDING[0], torch.bfloat16, batch=512)
    assert not all(map(torch.equal, honest, other))
    assert (honest[-1] - other[-1]).norm() < 0.01 * honest[-1].norm()


def test_rounding_noise_is_the_same_each_time_and_draws_nothing_of_the_trainings():
    _, honest = step()
    with applied(ROUNDING[0], HERE, HERE):
        first, drawn = step()
    second = under(ROUNDING[0])
    assert torch.equal(honest, drawn)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("setting", [Setting("threads", threads=2), Setting("onednn", onednn=True), *ROUNDING])
def test_nothing_stays(setting):
    before, honest = detect("cpu"), step()[0]
    with pytest.raises(RuntimeError, match="meant"), applied(setting, HERE, HERE):
        raise RuntimeError("meant")
    assert detect("cpu") == before
    assert all(map(torch.equal, honest, step()[0]))


def test_settings_by_class_and_fidelity():
    def names(device="cpu", **what):
        recorded = type(HERE)(device, HERE.device_name, HERE.torch, HERE.capability, 1, HERE.flags)
        return [setting.name for setting in settings_for(recorded, **what)]

    rounding, start = [f"rounding-{n}" for n in (1, 2, 3)], [f"start-{n}" for n in (1, 2, 3)]
    assert names(another=False, rounded=False) == []
    assert names(another=False, rounded=True) == start
    assert names(another=True, rounded=False) == ["threads", "onednn", *rounding]
    assert names("cuda", another=True, rounded=True) == ["kernels", *rounding, *start]


def test_a_class_that_may_round_products_gets_a_coarser_unit():
    flags = tuple((name, "high" if name == "float32_matmul_precision" else value) for name, value in HERE.flags)
    coarse = type(HERE)("cpu", "Elsewhere 9000", HERE.torch, HERE.capability, HERE.threads, flags)
    honest, _ = step()
    with applied(ROUNDING[0], coarse, HERE):
        found, _ = step()
    distance = (honest[-1] - found[-1]).norm() / honest[-1].norm()
    assert distance > 1e-5
