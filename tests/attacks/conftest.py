"""One honest run, recorded, signed and proven once; and a verifier to put forgeries before."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

from polstore.prover import commit, prove
from polstore.publish import publish
from polstore.reader import Run, open_archive
from polstore.recording import record_recipe
from polstore.storage.store import open_store
from polstore.terminal import plain
from polverify.time import Sources
from polverify.verdict import Decision, Outcome, Verdict
from polverify.verify import Request, verify
from tests.attacks import elsewhere, forge
from tests.attacks.forge import Evidence
from tests.attacks.served import Archive
from tests.schema import check_verdict

if TYPE_CHECKING:
    from pathlib import Path

Judge = Callable[..., Verdict]
Rejects = Callable[..., int]


@pytest.fixture(scope="session", autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    yield
    torch.set_num_threads(before)


def recorded(path: Path, *, fidelity: str = "float16-writeback", run: str = forge.RUN, **config: Any) -> Evidence:
    """Record, sign and prove an honest run with the product itself."""
    recorder, training, recipe = record_recipe(
        forge.RECIPE, every=forge.EVERY, store=path, run=run, seed=5, fidelity=fidelity, config=config
    )
    with recorder:
        recorder.train(training, recipe.step, forge.STEPS, lambda _step, _loss: None)
    with open_store(path) as store:
        root = commit(store, run, forge.KEY, now=lambda: forge.NOW)
        found = Run(store, run)
        proof = prove(found, range(forge.SEGMENTS))
        return Evidence(root, proof.bundle, {digest: found.blob(digest) for digest, _ in proof.bundle.blobs})


@pytest.fixture(scope="session", params=["float16-writeback", "lossless"])
def honest_of_each_fidelity(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return recorded(tmp_path_factory.mktemp("store") / "s", fidelity=request.param)


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return recorded(tmp_path_factory.mktemp("store") / "s")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Another honest run by the same signer."""
    return recorded(tmp_path_factory.mktemp("store") / "s", run="other", lr=0.05)


@pytest.fixture(scope="session")
def trained() -> forge.Trainer:
    """The victim: another honest trainer, whose last snapshot the attacks want to reach."""
    trainer = forge.Trainer(config={"lr": 0.3})
    trainer.run()
    return trainer


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """The honest run, published."""
    path = tmp_path_factory.mktemp("archive")
    evidence = recorded(path / "st")
    with open_archive(path / "st") as opened:
        publish(opened, path / "www", [forge.RUN], lambda *_: None)
    found = Archive(path / "www", evidence.root, evidence.bundle.leaves)
    assert all((found.directory / name).is_file() for name in found.names().values())
    return found


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """Verify a proof, given as evidence or as the bytes of a root and a bundle."""
    path = tmp_path_factory.mktemp("bundles") / "bundle"

    def judged(
        evidence: Evidence | None = None,
        *,
        root: bytes | None = None,
        data: bytes | None = None,
        keys: Any = None,
        recipe: Any = None,
        challenge: Any = None,
        ledger: bytes | None = None,
        time: Any = None,
        audit: bool = False,
        **wishes: Any,
    ) -> Verdict:
        if evidence is not None:
            root = evidence.root if root is None else root
            data = evidence.data() if data is None else data
        assert root is not None
        assert data is not None
        path.write_bytes(data)
        wanted = forge.KEY.verifier_keys() if keys is None else keys
        sources = time or Sources()
        verdict = verify(
            Request(root, wanted, path, recipe or forge.RECIPE, challenge, ledger, audit, time=sources, **wishes)
        )
        check_verdict(plain(verdict.as_json()))
        return verdict

    return judged


@pytest.fixture(scope="session")
def rejects(judge: Judge) -> Rejects:
    """Verify a proof, require that it is rejected in good order, and return the number of the check that did it."""

    def rejected(*arguments: Any, **options: Any) -> int:
        verdict = judge(*arguments, **options)
        assert verdict.decision is Decision.REJECT, (verdict.decision, verdict.reason)
        match = re.match(r"check (\d+) \(([a-z -]+)\): .", verdict.reason)
        assert match is not None, verdict.reason
        number = int(match[1])
        for check in verdict.checks:
            if check.number == number:
                assert (check.name, check.outcome) == (match[2], Outcome.FAILED)
            elif check.number > number:
                assert check.outcome is Outcome.NOT_MADE
            else:
                assert check.outcome is not Outcome.FAILED
        return number

    return rejected


@pytest.fixture
def _left_as_it_was() -> Iterator[None]:
    """A verifier enters the recorded class; the next test is to begin in this machine's own."""
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    yield
    torch.set_num_threads(threads)
    torch.backends.mkldnn.set_flags(onednn)


@pytest.fixture
def tolerant(judge: Judge, _left_as_it_was: None) -> Judge:
    """Judge a run of `tests.attacks.elsewhere` with a tolerance."""

    def judged(evidence: Any, **wishes: Any) -> Any:
        return judge(evidence, recipe=elsewhere.RECIPE, **({"tolerant": True} | wishes))

    return judged
