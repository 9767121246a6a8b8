"""Real training from recording to verdict, each part in a process of its own, by the command lines that users have.

The state digests are compared by polverify, and once more with that of a witness (`witness.py`) that trains a segment
again without polstore's recorder or replay.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import polstore
from polstore.codec.live.recipe import RecipeFile
from polstore.errors import MissingError

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
RESNET = EXAMPLES / "resnet20_fashion_mnist.py"
GPT = EXAMPLES / "gpt.py"
LOOP = EXAMPLES / "train_loop.py"
FASHION_MNIST = Path(os.environ.get("FASHION_MNIST") or "/usr/share/datasets/fashion-mnist")
TINY = {
    "layers": 1,
    "width": 32,
    "heads": 2,
    "context": 32,
    "batch_size": 4,
    "megabytes": 0.02,
}  # 30 thousand parameters
LIMIT = 240  # seconds for one process; none takes a tenth of it on an idle machine

needs_images = pytest.mark.skipif(
    not any((FASHION_MNIST / f"train-images-idx3-ubyte{end}").is_file() for end in ("", ".gz")),
    reason=f"no Fashion-MNIST in {FASHION_MNIST}: install Debian's dataset-fashion-mnist or set FASHION_MNIST",
)


@dataclass
class Work:
    """A directory with one run's files, and the programs run in it."""

    path: Path

    def python(self, *arguments: object, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        return self._run(sys.executable, *arguments, code=code, **variables)

    def program(self, name: str, *arguments: object, code: int = 0, **variables: str) -> str:
        return self._run(Path(sys.executable).parent / name, *arguments, code=code, **variables).stdout

    def record(self, recipe: Path, every: int, steps: int, config: dict[str, object], **variables: str) -> None:
        self.program("polstore", *self.recording(recipe, every, steps, config), **variables)

    def recording(self, recipe: Path, every: int, steps: int, config: dict[str, object]) -> list[object]:
        settings = [part for name, value in config.items() for part in ("--config", f"{name}={json.dumps(value)}")]
        size = ["--every", every, "--steps", steps, "--seed", 7]
        return ["record", recipe, "--store", "store", "--run", "real", *size, *settings]

    def verify(self, recipe: Path, code: int = 0) -> dict:
        """Commit, challenge every segment, prove, check; return the verdict."""
        with polstore.open(self.path / "store") as archive:
            (name,) = archive.runs()
            count = len(archive.run(name).segments)
        self.program("polstore", "keygen", "--name", "example.com/alice", "--out", "key")
        self.program("polstore", "commit", "--store", "store", "--key", "key", "--out", "root")
        self.program("polverify", "challenge", "root", "--key", "key.pub", "--segments", count, "--out", "challenge")
        self.program("polstore", "prove", "--store", "store", "--challenge", "challenge", "--out", "bundle")
        asked = ["check", "root", "--key", "key.pub", "--bundle", "bundle", "--challenge", "challenge"]
        return json.loads(self.program("polverify", *asked, "--recipe", recipe, "--json", code=code))

    def witness(self, recipe: Path, segment: int) -> str:
        here = Path(__file__).with_name("witness.py")
        return self.python(here, "store", "real", recipe, segment).stdout.strip()

    def _run(self, *command: object, code: int, **variables: str) -> subprocess.CompletedProcess[str]:
        plain = {name: value for name, value in os.environ.items() if name not in CLASS_VARIABLES} | QUIET
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.path,
            env=plain | variables,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


QUIET = {"OMP_WAIT_POLICY": "PASSIVE"}  # on a busy machine, threads that wait by spinning took five times as long
CLASS_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def outcome(verdict: dict, number: int) -> str:
    return verdict["checks"][number]["outcome"]


def require_exact(verdict: dict, segments: int, steps: int) -> None:
    assert verdict["decision"] == "ACCEPT"
    assert outcome(verdict, 5) == "passed"  # the initial state was rebuilt from the seed
    assert outcome(verdict, 10) == "passed"
    assert [result["detail"] for result in verdict["segments"]] == ["state digests are equal"] * segments
    assert verdict["claim"]["steps_replayed"] == verdict["claim"]["steps"] == steps


def end_state(work: Work, segment: int) -> str:
    with polstore.open(work.path / "store") as archive:
        return archive.run("real").segment(segment).end_state.hex()


@pytest.mark.slow
@needs_images
def test_resnet20_on_fashion_mnist(work: Work) -> None:
    # 1500 images are 12 batches of 128, the last of them smaller: the run goes over them three times.
    work.record(RESNET, 12, 36, {"images": 1500, "augment": True, "total_steps": 40})
    require_exact(work.verify(RESNET), segments=3, steps=36)
    assert work.witness(RESNET, 1) == end_state(work, 1)
    with polstore.open(work.path / "store") as archive:
        run = archive.run("real")
        rates = {dict(group)["lr"] for step in run.steps(2).steps for group in step.hyperparameters}
        assert sorted(rates) == pytest.approx([0.001, 0.01])  # the schedule had its way inside the last segment
        losses = [step.loss for index in range(3) for step in run.steps(index).steps]
        assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
        assert len(run.state(36).tensors) == 59 + 59 + 57  # parameters, momentum, buffers


@pytest.mark.slow
def test_gpt_recorded_on_one_thread_and_verified_where_more_are_the_default(work: Work) -> None:
    config = {
        "layers": 2,
        "width": 128,
        "heads": 4,
        "batch_size": 8,
        "warmup": 10,
        "total_steps": 40,
        "megabytes": 0.25,
    }
    work.record(GPT, 10, 30, config, OMP_NUM_THREADS="1")
    with polstore.open(work.path / "store") as archive:
        run = archive.run("real")
        assert run.manifest.environment.threads == 1
        assert sum(tensor.data.size for tensor in run.state(0).tensors if tensor.name.startswith("parameter/")) < 1e6
    require_exact(work.verify(GPT), segments=3, steps=30)
    assert work.witness(GPT, 2) == end_state(work, 2)


@pytest.mark.slow
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this processor has no wider capability than DEFAULT"
)
def test_the_verifier_enters_a_narrower_cpu_capability_by_itself(work: Work) -> None:
    work.record(GPT, 2, 4, {**TINY, "tied": True}, ATEN_CPU_CAPABILITY="default")
    with polstore.open(work.path / "store") as archive:
        assert archive.run("real").manifest.environment.capability == "DEFAULT"
    require_exact(work.verify(GPT), segments=2, steps=4)


@pytest.mark.slow
def test_a_class_that_cannot_be_entered_is_inconclusive(work: Work) -> None:
    elsewhere = (
        "import polstore.codec.live.environment as environment\n"
        "environment._processor = lambda: 'Another Processor'\n"
        "from polstore.cli.main import main\n"
        "main()\n"
    )
    work.python("-c", elsewhere, *work.recording(GPT, 2, 4, TINY))
    verdict = work.verify(GPT, code=3)
    assert verdict["decision"] == "INCONCLUSIVE"
    assert "another environment class: device name is " in verdict["reason"]
    assert "not Another Processor" in verdict["reason"]
    assert outcome(verdict, 10) == "undecided"
    assert {result["outcome"] for result in verdict["segments"]} == {"undecided"}


@pytest.mark.slow
def test_a_script_that_is_its_own_recipe(work: Work) -> None:
    pytest.importorskip("sklearn")
    first = work.python(LOOP, "store")
    assert "epoch 3" in first.stdout
    again = work.python(LOOP, "store")
    assert "epoch" not in again.stdout  # it goes on from the end: nothing is left to do
    require_exact(work.verify(LOOP), segments=5, steps=87)


def test_missing_images_are_named_with_the_package_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path))
    with pytest.raises(MissingError, match=r"(?s)dataset-fashion-mnist") as caught:
        RecipeFile.read(RESNET).load().build("cpu", {})
    assert str(tmp_path) in str(caught.value)


HEADER = bytes((0, 0, 8, 2)) + (2).to_bytes(4, "big") + (3).to_bytes(4, "big")


def read_idx(directory: Path, data: bytes, *, packed: bool = False) -> torch.Tensor:
    (directory / ("file.gz" if packed else "file")).write_bytes(gzip.compress(data) if packed else data)
    return RecipeFile.read(RESNET).load().build_function.__globals__["read_idx"](directory, "file", 2)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_plain_and_gzipped(tmp_path: Path, packed: bool) -> None:
    assert read_idx(tmp_path, HEADER + bytes(range(6)), packed=packed).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEADER[:11],
        HEADER + bytes(5),
        HEADER + bytes(7),
        HEADER,
        bytes((0, 0, 9, 2)) + HEADER[4:] + bytes(6),
        bytes((0, 0, 8, 3)) + HEADER[4:] + bytes(6),
        bytes((0, 0, 8, 2)) + bytes(8),
    ],
    ids=["empty", "cut header", "too short", "too long", "no elements", "signed", "dimensions", "sizes of 0"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_broken_idx_file_is_refused(tmp_path: Path, data: bytes, packed: bool) -> None:
    with pytest.raises(ValueError, match=r"file"):
        read_idx(tmp_path, data, packed=packed)


def test_a_broken_gzip_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.gz").write_bytes(gzip.compress(HEADER + bytes(6))[:-9])
    with pytest.raises(ValueError, match="damaged"):
        RecipeFile.read(RESNET).load().build_function.__globals__["read_idx"](tmp_path, "file", 2)
