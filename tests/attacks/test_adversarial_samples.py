"""Adversarial examples: weights on a straight line to the victim's, and samples bent until gradients lead along it.

The attacks of "Adversarial examples for proof-of-learning" on the paper's verifier, which asks only that each step end
near the claimed weights. What is bent are the samples, by gradients of gradients.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from polstore.codec.live.recipe import RecipeFile
from polstore.codec.norms import distances
from tests.attacks import forge
from tests.attacks.forge import Trainer, tampered
from tests.attacks.test_forged_runs import DATA, REPLAY, last, set_weights

STEPS, BATCH = 4, 8
CONFIG = {"momentum": 0.0, "lr": 2.0}
LOADED = "    labels = torch.randint(0, 4, (SAMPLES,), generator=generator)\n"


class Adversarial(Trainer):
    """Ends every segment, of one step each, on the line to the victim's weights; bends the samples of each to fit."""

    def aim(self, victim: Trainer, *, bent: bool = True) -> Adversarial:
        self.goal, self.bent = last(victim), bent
        self.original = self.dataset
        self.dataset = tampered(self.dataset, lambda *_: None)
        self.off: list[float] = []  # how far each step ends from where it is claimed to
        return self

    def draw(self, number: int) -> tuple[int, ...]:
        return tuple(range(BATCH * number, BATCH * (number + 1)))

    def used(self, number: int, indices: tuple[int, ...]) -> tuple[int, ...]:
        if self.bent:
            inputs, labels = self.dataset.tensors
            places = list(indices)
            inputs[places] = self.bend(inputs[places].clone(), labels[places], STEPS - number)
        return indices

    def bend(self, inputs: torch.Tensor, labels: torch.Tensor, left: int) -> torch.Tensor:
        """Change samples until a step on them leads as near as possible to the next point on the line."""
        model = copy.deepcopy(self.training.model)
        wanted = [
            (parameter.detach() - torch.from_numpy(self.goal.tensor(f"parameter/{name}").data).reshape(parameter.shape))
            / left
            / CONFIG["lr"]
            for name, parameter in model.named_parameters()
        ]
        inputs.requires_grad_()
        search = torch.optim.Adam([inputs], lr=0.1)
        for _ in range(60):
            loss = functional.cross_entropy(model(inputs), labels)
            found = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
            gap = sum(((one - other) ** 2).sum() for one, other in zip(found, wanted, strict=True))
            search.zero_grad()
            gap.backward()
            search.step()
        return inputs.detach()

    def end(self, index: int) -> None:
        before = self.live.capture(index + 1)
        set_weights(self, self.goal, 1 / (STEPS - index))
        self.off.append(distances(before, self.live.capture(index + 1)).l2)


def forged(victim: Trainer, *, bent: bool = True, kind: type[Adversarial] = Adversarial, **options: Any) -> Adversarial:
    return kind(config=CONFIG, fidelity="lossless", steps=STEPS, every=1, **options).aim(victim, bent=bent)


def test_samples_bent_and_declared_as_they_are(rejects, trained):
    """Attack I: the root of the bent dataset is declared. It is not that of the verifier's own copy."""
    straight, bent = forged(trained, bent=False), forged(trained)
    straight.run()
    evidence = bent.run()
    assert sum(bent.off) < 0.85 * sum(straight.off)  # it works: every step ends nearer to its claim
    assert rejects(evidence) == DATA


def test_samples_bent_under_the_root_of_the_true_ones(rejects, trained):
    """Attack II: the true dataset is declared, and trained on are the bent samples. Their gradients are others."""

    class Undeclared(Adversarial):
        def commit_dataset(self) -> Any:
            return self.original

    assert rejects(forged(trained, kind=Undeclared).run()) == REPLAY


@pytest.mark.parametrize("segment", range(STEPS))
def test_samples_bent_for_the_verifier_too(rejects, trained, tmp_path, segment):
    """Attack III: the verifier's recipe loads the bent samples. To the last bit no sample leads to a given state."""
    first = forged(trained)
    first.run()
    torch.save(first.dataset.tensors[0], tmp_path / "inputs")
    text = Path(forge.RECIPE.path).read_text()
    assert LOADED in text
    (tmp_path / "recipe.py").write_text(
        text.replace(LOADED, f"{LOADED}    inputs = torch.load({str(tmp_path / 'inputs')!r})\n")
    )
    recipe = RecipeFile.read(tmp_path / "recipe.py")
    evidence = forged(trained, bent=False, recipe_file=recipe).run(opened=(segment,))
    assert rejects(evidence, recipe=recipe) == REPLAY
