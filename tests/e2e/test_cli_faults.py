"""Every fault of a command line: its exit code, its one line, and that nothing was changed or left behind."""

import base64
import errno
import hashlib
import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import command_line
import pytest
import torch

import polstore
from polstore.storage.store import open_store


@pytest.fixture
def shell(capsys, monkeypatch):
    threads = torch.get_num_threads()
    yield command_line.Shell(capsys, monkeypatch)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two stores, the second without a signed root, with keys, roots, a challenge and bundles."""
    from polstore import keyfile
    from polstore.cli import writing
    from polverify import cli

    path = tmp_path_factory.mktemp("made")
    (path / "recipe.py").write_text(command_line.RECIPE)
    (path / "other.py").write_text(command_line.RECIPE + "# another file\n")
    for name in ("key", "key2"):
        keyfile.generate("example.com/alice", path / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        at = {name: path / name for name in ("recipe.py", "st", "one", "key", "key.pub", "root", "challenge")}
        for store, run in (("st", "a"), ("st", "b"), ("one", "b")):
            writing.record(at["recipe.py"], path / store, run, every=2, steps=6, seed=1 + (run == "b"))
        for run in "ab":
            writing.commit(at["st"], [at["key"]], run, path / f"root{run}")
            writing.prove(at["st"], path / f"bundle{run}", run, segment=[0, 2])
        cli.challenge(path / "roota", at["challenge"], random=0, key=[at["key.pub"]])
        writing.prove(at["st"], path / "answer", "a", challenge=at["challenge"])
    return path


def contents(path):
    """Return what is in a directory: names and bytes, but for LMDB's lock file, which readers write to."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in ("lock.mdb", "writer.lock") and os.access(file, os.R_OK)
    }


@pytest.fixture
def unchanged(made):
    before = contents(made)
    yield made
    assert contents(made) == before


FAULTS = [
    # wrong usage
    (2, "polstore nonsense", "No such command"),
    (2, "polstore ls", "--store"),
    (2, "polstore ls --store st --bogus", "No such option"),
    (2, "polstore show --store one --segment x", "valid integer"),
    (2, "polstore show --store one --segment -1", "expected 0 or more, got -1"),
    (2, "polstore export --store one --step -7 new", "expected 0 or more, got -7"),
    (2, "polstore prove --store st --run a --segment -1 --out new", "expected 0 or more, got -1"),
    (2, "polstore prove --store st --run a --out new", "neither"),
    (2, "polstore prove --store st --run a --segment 0 --challenge challenge --out new", "both"),
    (2, "polstore prove --store st --segment 0 --out new", "--run a or b"),
    (2, "polstore keygen --name a+b --out new", "key name"),
    (2, "polstore record recipe.py --store st --run c --every 0", "expected 1 to"),
    (2, "polstore record recipe.py --store st --run c --every -2", "expected 1 to"),
    (2, "polstore record recipe.py --store st --run c --every 2 --steps 0", "--steps"),
    (2, "polstore record recipe.py --store st --run c --every 2 --steps -1", "--steps"),
    (2, "polstore record recipe.py --store st --run c --every 2 --seed -1", "seed"),
    (2, "polstore record recipe.py --store st --run c/d --every 2", "name for a run"),
    (2, "polstore record recipe.py --store st --run c --every 2 --fidelity exact", "float16-writeback or compact"),
    (2, "polstore record recipe.py --store st --run c --every 2 --device nonsense", "cpu, cuda or cuda:N"),
    (2, "polstore record recipe.py --store st --run c --every 2 --config lr", "NAME=VALUE"),
    (2, "polstore record recipe.py --store st --run c --every 2 --config l-r=1", "NAME=VALUE"),
    (2, "polstore record recipe.py --store st --run c --every 2 --config lr=[1]", "a number"),
    (2, "polstore record recipe.py --store st --run c --every 2 --config lr=1e999", "a number"),
    (2, "polstore record recipe.py --store st --run c --every 2 --config lr=99999999999999999999999", "2**64"),
    (2, "polstore record recipe.py --store st --run c --every 2 --config lr=1 --config lr=2", "lr twice"),
    (2, "polstore record other.py --store st --run a --every 2 --resume", "another recipe"),
    (2, "polstore record recipe.py --store st --run a --every 2 --resume --config samples=33", "another recipe"),
    (2, "polverify challenge roota --key key.pub --segments 0 --out new", "number of segments"),
    (2, "polverify challenge roota --key key.pub --segments -1 --out new", "number of segments"),
    (2, "polverify challenge roota --key key.pub --segments 2 --random 9 --out new", "both"),
    (2, "polverify challenge roota --key key.pub --out new", "neither"),
    (2, "polverify challenge roota --key key.pub --random -1 --out new", "number of random segments"),
    (2, "polverify challenge roota --key key.pub --random 1 --segment 3 --out new", "expected 0 to 2, got 3"),
    (2, "polverify challenge roota --key key.pub --random 1 --top 1 --out new", "--records with them"),
    (2, "polverify challenge roota --key key.pub --random 1 --odd 1 --out new", "--records with them"),
    (2, "polverify challenge roota --key key.pub --random 1 --records bundlea --epoch-steps 4 --out new", "--top with"),
    (2, "polverify challenge roota --key key.pub --random 1 --nonce 99 --nonce-from-root --out new", "one source"),
    (2, "polverify challenge roota --key key.pub --random 1 --nonce-from-cosignature key.pub --out new", "signer's"),
    (2, "polverify plan", "neither"),
    (2, "polverify plan roota --segments 9", "both"),
    (2, "polverify plan --segments 0", "number of segments"),
    (2, "polverify plan --segments 9 --share 5%", "a number like"),
    (2, "polverify plan --segments 9 --share 0", "above 0"),
    (2, "polverify plan --segments 9 --share 1e-999999999", "a number like"),
    (2, "polverify plan --segments 9 --confidence 1.5", "above 0 and at most 1"),
    (2, "polverify plan --segments 9 --confidence 1/0", "a number like"),
    (2, "polverify plan --segments 9 --step-seconds 2", "--steps-per-segment with it"),
    (2, "polstore prove --store st --run a --records --audit --out new", "shows the records too"),
    (2, "polstore prove --store st --run a --records --segment 0 --out new", "several"),
    (2, "polstore prove --store st --run a --challenge challenge --leaves 4 --out new", "names its root"),
    (2, "polverify challenge roota --key key.pub --segments 2 --nonce 99 --out new", "64 hex digits"),
    (2, "polverify check roota --key key.pub --bundle bundlea --recipe recipe.py --device tpu", "cpu, cuda or cuda:N"),
    # somebody else's file at fault
    (1, "polstore prove --store st --run a --challenge roota --out new", "challenge"),
    (1, "polstore prove --store st --run a --challenge empty --out new", "challenge"),
    (1, "polstore prove --store st --run b --challenge challenge --out new", "another root"),
    (1, "polverify challenge bundlea --key key.pub --segments 1 --out new", "not UTF-8"),
    (1, "polverify challenge roota --key key.pub --random 1 --records bundleb --top 1 --out new", "another root"),
    (1, "polverify challenge roota --key key.pub --random 1 --nonce-from-cosignature key2.pub --out new", "known key"),
    (1, "polverify challenge empty --key key.pub --segments 1 --out new", "note"),
    (1, "polverify challenge roota --key key2.pub --segments 1 --out new", "no signature of a known key"),
    (1, "polverify show recipe.py", "neither a signed root nor a bundle nor a challenge"),
    (1, "polverify show empty", "neither a signed root nor a bundle nor a challenge"),
    # the caller's side at fault
    (4, "polstore ls --store missing", "no store at"),
    (4, "polstore ls --store key.pub", "no store at"),
    (4, "polstore fsck --store .", "no store at"),
    (4, "polstore show --store st --run nobody", "expected a or b, got nobody"),
    (4, "polstore show --store one --segment 3", "expected 0 to 2, got 3"),
    (4, "polstore export --store one --step 3 new", "no snapshot at step 3"),
    (4, "polstore export --store one --step 2 missing/new", "No such file or directory"),
    (4, "polstore export --store one --step 2 st", "exists already"),
    (4, "polstore commit --store one --key missing", "missing"),
    (4, "polstore commit --store one --key st", "st: Is a directory"),
    (4, "polstore commit --store one --key empty-private", "does not name its key"),
    (4, "polstore commit --store one --key key.pub", "expected mode 0600"),
    (4, "polstore commit --store st --run a --key key2", "another key has signed it"),
    (4, "polstore prove --store one --segment 0 --out new", "no signed root yet"),
    (4, "polstore prove --store st --run a --segment 3 --out new", "expected 0 to 2, got 3"),
    (4, "polstore prove --store st --run a --challenge missing --out new", "missing cannot be read"),
    (4, "polstore prove --store st --run a --challenge st --out new", "Is a directory"),
    (4, "polstore prove --store st --run a --segment 0 --out st", "exists already"),
    (4, "polstore prove --store st --run a --segment 0 --out missing/new", "No such file or directory"),
    (4, "polstore keygen --name a --out key", "not overwritten"),
    (4, "polstore keygen --name a --out missing/new", "no such file or directory"),
    (4, "polstore record missing.py --store st --run c --every 2", "missing.py cannot be read"),
    (4, "polstore record st --store st --run c --every 2", "Is a directory"),
    (4, "polstore record empty --store st --run c --every 2", "functions build and step"),
    (4, "polstore record recipe.py --store st --run a --every 2", "exists already"),
    (4, "polstore record recipe.py --store key.pub --run c --every 2", "not a directory"),
    (4, "polstore record recipe.py --store . --run c --every 2", "not empty and no store"),
    (4, "polstore record recipe.py --store st --run c --every 2 --config nope=1", "nope"),
    (4, "polverify challenge roota --key key.pub --random 1 --records missing --top 1 --out new", "missing"),
    (4, "polverify plan missing", "missing"),
    (4, "polstore prove --store st --run a --records --leaves 3 --out new", "no signed root of that size"),
    (4, "polverify challenge missing --key key.pub --segments 1 --out new", "missing cannot be read"),
    (4, "polverify challenge st --key key.pub --segments 1 --out new", "Is a directory"),
    (4, "polverify challenge roota --key missing --segments 1 --out new", "missing"),
    (4, "polverify challenge roota --key st --segments 1 --out new", "st"),
    (4, "polverify challenge roota --key empty --segments 1 --out new", "public key file"),
    (4, "polverify challenge roota --key key --segments 1 --out new", "verifier key"),
    (4, "polverify challenge roota --key small.pub --segments 1 --out new", "a point of large order"),
    (4, "polverify challenge roota --key key.pub --segments 1 --out missing/new", "No such file or directory"),
    (4, "polverify show missing", "missing cannot be read"),
    (4, "polverify show st", "Is a directory"),
    (4, "polverify check missing --key key.pub --bundle bundlea --recipe recipe.py", "missing cannot be read"),
    (4, "polverify check roota --key missing --bundle bundlea --recipe recipe.py", "missing"),
    (4, "polverify check roota --key key.pub --bundle missing --recipe recipe.py", "no bundle missing"),
    (4, "polverify check roota --key key.pub --bundle st --recipe recipe.py", "no bundle st"),
    (4, "polverify check roota --key key.pub --bundle bundlea --recipe missing", "missing cannot be read"),
    (4, "polverify check roota --key key.pub --bundle answer --challenge roota --recipe recipe.py", "challenge roota"),
    (4, "polverify check roota --key key.pub --bundle answer --challenge empty --recipe recipe.py", "challenge empty"),
]


@pytest.fixture(scope="module")
def prepared(made):
    (made / "empty").write_bytes(b"")
    (made / "empty-private").touch(0o600)
    name, public = "example.com/alice", bytes(32)  # the point at y = 0, of order 4
    key_id = hashlib.sha256(name.encode() + b"\n\x01" + public).digest()[:4].hex()
    (made / "small.pub").write_text(f"{name}+{key_id}+{base64.b64encode(bytes([1]) + public).decode()}\n")
    return made


@pytest.mark.parametrize(("code", "words", "says"), FAULTS, ids=[item[1] for item in FAULTS])
def test_a_fault_is_one_line_and_changes_nothing(prepared, unchanged, shell, monkeypatch, code, words, says):
    monkeypatch.chdir(prepared)
    monkeypatch.delenv("POLSTORE_STORE", raising=False)
    line = shell.fails(code, *words.split(), says=says)
    assert "Traceback" not in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without the device")
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_device_that_is_not_there(unchanged, shell, monkeypatch, device):
    monkeypatch.chdir(unchanged)
    says = f"expected {device}, got 0 CUDA devices"
    words = ("--run", "c", "--every", 2, "--device", device)
    shell.fails(4, "polstore", "record", "recipe.py", "--store", "st", *words, says=says)
    words = ("roota", "--key", "key.pub", "--bundle", "bundlea", "--recipe", "recipe.py", "--device", device)
    shell.fails(4, "polverify", "check", *words, says=says)


def test_a_private_key_is_never_shown(unchanged, shell, monkeypatch):
    monkeypatch.chdir(unchanged)
    secret = (unchanged / "key").read_text().splitlines()[2]
    for words in (("show", "key"), ("challenge", "key", "--key", "key", "--segments", 1, "--out", "new")):
        _, out, err = shell("polverify", *words)
        assert secret not in out + err
    _, out, err = shell("polverify", "challenge", "key", "--key", "key.pub", "--segments", 1, "--out", "new")
    assert secret not in out + err


def test_a_file_that_may_not_be_read(made, shell, monkeypatch):
    really = Path.open

    def refuse(path, *arguments, **options):
        if path.name == "roota":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return really(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything, so chmod would show nothing
    shell.fails(4, "polverify", "show", made / "roota", says="Permission denied")


REJECTED = {
    "another recipe": ("roota", "key.pub", "bundlea", "other.py", 4),
    "another key": ("roota", "key2.pub", "bundlea", "recipe.py", 1),
    "bundle of another run": ("roota", "key.pub", "bundleb", "recipe.py", 1),
    "signed root in the bundle's place": ("roota", "key.pub", "roota", "recipe.py", 0),
    "bundle in the signed root's place": ("bundlea", "key.pub", "bundlea", "recipe.py", 1),
    "challenge in the bundle's place": ("roota", "key.pub", "challenge", "recipe.py", 0),
}


@pytest.mark.parametrize("case", REJECTED)
def test_a_proof_at_fault_is_rejected(unchanged, shell, monkeypatch, case):
    monkeypatch.chdir(unchanged)
    root, key, bundle, recipe, number = REJECTED[case]
    words = ("polverify", "check", root, "--key", key, "--bundle", bundle, "--recipe", recipe)
    code, out, err = shell(*words)
    assert (code, err) == (1, "")
    assert out.startswith(f"REJECT: check {number} (")
    code, out, err = shell(*words, "--json")
    assert (code, err) == (1, "")
    assert json.loads(out)["decision"] == "REJECT"


def test_bundle_that_does_not_answer_the_challenge(unchanged, shell, monkeypatch):
    monkeypatch.chdir(unchanged)
    shell.ok("polstore", "prove", "--store", "st", "--run", "a", "--segment", 1, "--out", "other")
    words = ("polverify", "check", "roota", "--key", "key.pub", "--bundle", "other", "--recipe", "recipe.py")
    code, out, _ = shell(*words, "--challenge", "challenge")
    (unchanged / "other").unlink()
    assert (code, out[:17]) == (1, "REJECT: check 7 (")


@pytest.mark.parametrize("place", [0, 19, 25, 60, 400, 0.3, 0.5, 0.9, -1])
def test_a_flipped_byte_is_rejected(made, shell, tmp_path, place):
    data = bytearray((made / "bundlea").read_bytes())
    data[int(place * len(data)) if isinstance(place, float) else place] ^= 1
    (tmp_path / "bundle").write_bytes(data)
    words = ("--key", made / "key.pub", "--bundle", tmp_path / "bundle", "--recipe", made / "recipe.py")
    code, out, err = shell("polverify", "check", made / "roota", *words)
    assert (code, out[:6], err) == (1, "REJECT", "")


def test_a_newer_format_says_so(made, shell, tmp_path):
    data = (made / "challenge").read_bytes()
    assert data.count(b"polstore/challenge/v1") == 1
    (tmp_path / "challenge").write_bytes(data.replace(b"polstore/challenge/v1", b"polstore/challenge/v9"))
    shell.fails(1, "polverify", "show", tmp_path / "challenge", says="polstore/challenge/v9")
    magic = b"polstore bundle v1\n"
    data = (made / "bundlea").read_bytes()
    assert magic in data[:40]
    (tmp_path / "bundle").write_bytes(data.replace(magic, b"polstore bundle v9\n", 1))
    shell.fails(1, "polverify", "show", tmp_path / "bundle")


RECIPES = {
    "not python": ("def build(:", "SyntaxError"),
    "raises": ("1 / 0", "ZeroDivisionError"),
    "no build": ("def step(training, batches): pass", "no build"),
    "no step": ("def build(device): pass", "no step"),
    "another result": ("def build(device): return 1\ndef step(training, batches): pass", "a polstore.Training"),
    "ends the program": ("raise SystemExit(0)", "exit(0)"),
    "build raises": ("def build(device): raise KeyError('x')\ndef step(training, batches): pass", "KeyError"),
    "step raises": (command_line.RECIPE + "\ndef step(*_):\n    raise IndexError('there')\n", "IndexError"),
    "step takes nothing": (command_line.RECIPE + "\ndef step(training, batches): return 0.0\n", "no batch"),
    "no data": (command_line.RECIPE.replace("samples=32", "samples=0").replace(", shuffle=True", ""), ""),
    "loader is a list": (command_line.RECIPE.replace("DataLoader(TensorDataset", "list((TensorDataset")
                         .replace("batch_size=8, shuffle=True)", ")"), ""),
    "NUL byte": ("x = 1\0", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_at_fault(unchanged, shell, tmp_path, monkeypatch, case):
    source, says = RECIPES[case]
    (tmp_path / "bad.py").write_text(source)
    store = tmp_path / "st"
    words = ("polstore", "record", tmp_path / "bad.py", "--store", store, "--run", "r", "--every", 2, "--steps", 4)
    line = shell.fails(4, *words, says=says)
    if case == "step raises":
        lines = source.splitlines()
        assert f"bad.py, line {lines.index(next(text for text in lines if 'there' in text)) + 1})" in line


def test_what_a_recipe_prints_is_no_data(shell, tmp_path):
    (tmp_path / "loud.py").write_text("print('hello')\n" + command_line.RECIPE)
    words = ("polstore", "record", tmp_path / "loud.py", "--store", tmp_path / "st", "--run", "r", "--every", 2)
    code, out, err = shell(*words, "--json")
    assert code == 0
    assert json.loads(out)["run"] == "r"
    assert "hello\n" in err


def test_a_dataset_that_changed_on_resume(shell, tmp_path):
    recipe = command_line.RECIPE.replace("/ 100", "/ float(__import__('os').environ['SCALE'])")
    (tmp_path / "recipe.py").write_text(recipe)
    words = ("polstore", "record", tmp_path / "recipe.py", "--store", tmp_path / "st", "--run", "r", "--every", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALE", "100")
        shell.ok(*words, "--steps", 3)
        before = contents(tmp_path)
        patch.setenv("SCALE", "101")
        shell.fails(4, *words, "--steps", 6, "--resume", says="dataset has changed")
    assert contents(tmp_path) == before


def test_a_store_that_is_being_recorded_to(unchanged, shell, monkeypatch):
    monkeypatch.chdir(unchanged)
    with open_store("st") as store, store.exclusive():
        words = ("polstore", "record", "recipe.py", "--store", "st", "--run", "c", "--every", 2)
        shell.fails(4, *words, says=f"is being recorded to by pid {os.getpid()}")
        shell.ok("polstore", "ls", "--store", "st")


SLOW = (
    command_line.RECIPE
    + """
from time import sleep
_step = step


def step(training, batches):
    sleep(0.02)
    return _step(training, batches)
"""
)


def test_an_interrupted_recording_can_go_on(tmp_path, shell):
    (tmp_path / "recipe.py").write_text(SLOW)
    words = ("polstore", "record", tmp_path / "recipe.py", "--store", tmp_path / "st", "--run", "r", "--every", 2)
    child = command_line.process(*words, "--steps", 1_000_000)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and child.poll() is None:
        with suppress(polstore.PolstoreError), polstore.open(tmp_path / "st") as archive:
            if len(archive.run("r").segments) >= 2:
                break
        time.sleep(0.1)
    shell.fails(4, *words, "--resume", says=f"is being recorded to by pid {child.pid}")
    child.send_signal(signal.SIGINT)
    code, out, err = command_line.finish(child)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith("interrupted; ")
    assert "Traceback" not in err
    with polstore.open(tmp_path / "st") as archive:
        done = archive.run("r").snapshots[-1]
        assert not archive.run("r").complete
    shell.ok("polstore", "fsck", "--store", tmp_path / "st")
    shell.ok(*words, "--resume", "--steps", done + 3)
    with polstore.open(tmp_path / "st") as archive:
        assert archive.run("r").snapshots[-1] == done + 3


@pytest.mark.parametrize("words", [("ls", "--store", "st"), ("ls", "--store", "st", "--json"), ("--help",)])
def test_stdout_that_cannot_be_written(made, words):
    with open("/dev/full", "w") as full:  # noqa: PTH123 # a device
        code, _, err = command_line.finish(command_line.process("polstore", *words, cwd=made, stdout=full))
    assert (code, err.count("\n")) == (4, 1)
    assert "No space left on device" in err
    reading, writing = os.pipe()
    os.close(reading)
    code, _, err = command_line.finish(command_line.process("polstore", *words, cwd=made, stdout=writing))
    os.close(writing)
    assert (code, err.count("\n")) == (4, 1)
    assert "output cannot be written" in err


def test_stderr_that_cannot_be_written_changes_no_exit_code(made):
    with open("/dev/full", "w") as full:  # noqa: PTH123 # a device
        for words, code in (("missing", 4), ("st", 0)):
            child = command_line.process("polstore", "fsck", "--store", words, cwd=made, stderr=full)
            assert command_line.finish(child)[0] == code


@contextmanager
def mounted(path, size):
    """A small tmpfs."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path):
    """Leave no byte free; return the file that takes all."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


def test_files_on_a_full_disk_are_written_whole_or_not_at_all(made, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    with mounted(tmp_path / "m", "64k") as small:
        fill(small / "filling")
        new = small / "new"
        for words in (
            ("polstore", "prove", "--store", "st", "--run", "a", "--segment", 0, "--out", new),
            ("polstore", "commit", "--store", "st", "--run", "a", "--key", "key", "--out", new),
            ("polstore", "export", "--store", "st", "--run", "a", "--step", 2, new),
            ("polstore", "keygen", "--name", "a", "--out", new),
            ("polverify", "challenge", "roota", "--key", "key.pub", "--segments", 1, "--out", new),
        ):
            shell.fails(4, *words)
            assert [file.name for file in small.iterdir()] == ["filling"], words


def test_a_recording_on_a_full_disk_goes_on_when_there_is_room(made, shell, tmp_path):
    with mounted(tmp_path / "m", "3m") as small:
        store = small / "st"
        words = ("polstore", "record", made / "recipe.py", "--store", store, "--run", "r", "--every", 1, "--seed", 1)
        shell.ok(*words, "--steps", 2)
        filling = fill(small / "filling")
        shell.fails(4, *words, "--steps", 400, "--resume", says="room")
        shell.ok("polstore", "fsck", "--store", store)
        with polstore.open(store) as archive:
            done = archive.run("r").snapshots[-1]
        filling.unlink()
        shell.ok(*words, "--steps", done + 2, "--resume")
        shell.ok("polstore", "fsck", "--store", store)
        with polstore.open(store) as archive:
            assert archive.run("r").snapshots == list(range(done + 3))
        fill(small / "filling")
        shell.fails(4, *words[:3], "--store", small / "new", *words[5:])
