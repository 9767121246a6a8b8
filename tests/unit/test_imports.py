"""What is imported when: torch only where a model is trained, and next to nothing for `import polstore`."""

import json
import subprocess
import sys

import pytest
import tiny_archive

SHOW = "import json; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
HEAVY = {"torch", "numpy", "lmdb", "msgpack", "cryptography", "safetensors", "zstandard", "typer", "rich"}


def modules_after(code, *arguments, cwd=None):
    """Run code in a process of its own and return which modules it has loaded."""
    program = f"import sys\ntry:\n    {code}\nexcept SystemExit as end:\n    assert not end.code, end.code\n{SHOW}"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("package", ["polstore", "polverify"])
def test_importing_a_package_is_cheap(package):
    loaded = modules_after(f"import {package}")
    assert not HEAVY & loaded
    assert {name for name in loaded if name.startswith(("polstore", "polverify"))} == {package}
    assert len(loaded - modules_after("pass")) < 60


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from polstore import keyfile

    path = tmp_path_factory.mktemp("imports")
    tiny_archive.make(path, steps=4)
    keyfile.generate("example.com/alice", path / "key")
    (path / "mine.pub").write_text("".join(f"{key.line()}\n" for key in tiny_archive.KEY.verifier_keys()))
    import polstore

    with polstore.open(path / "st") as archive:
        run = archive.run("r")
        (path / "root").write_bytes(run.signed_root())
        polstore.prove(run, [0]).write(path / "bundle")
        (path / "head").write_bytes(archive.ledger.head())
        polstore.prove(run, [], audit=True).write(path / "audit")
    tiny_archive.make(path, runs=("unsigned",), steps=2, signed=False)
    return path


POLSTORE, POLVERIFY = "from polstore.cli.main import main; main()", "from polverify.cli import main; main()"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (POLSTORE, "--help"),
        (POLSTORE, "record --help"),
        (POLSTORE, "keygen --name a --out new"),
        (POLSTORE, "ls --store st"),
        (POLSTORE, "show --store st --run r --segment 0"),
        (POLSTORE, "fsck --store st"),
        (POLSTORE, "export --store st --run r --step 2 weights"),
        (POLSTORE, "stats --store st"),
        (POLSTORE, "gc --store st --yes"),
        (POLSTORE, "repack --store st"),
        (POLSTORE, "copy --from st --to other"),
        (POLSTORE, "pubkey --key key"),
        (POLSTORE, "commit --store st --run unsigned --key key"),
        (POLSTORE, "log head --store st --out newer"),
        (POLSTORE, "log prove --store st --run r"),
        (POLSTORE, "log consistency 1 1 --store st"),
        (POLSTORE, "timestamp root --request query"),
        (POLSTORE, "prove --store st --run r --segment 0 --out proof"),
        (POLVERIFY, "--help"),
        (POLVERIFY, "check --help"),
        (POLVERIFY, "challenge root --key mine.pub --segments 1 --out challenge"),
        (POLVERIFY, "log head --key mine.pub --state seen"),
        (POLSTORE, "prove --store st --run r --audit --out proof"),
        (POLVERIFY, "challenge root --key mine.pub --random 1 --records audit --top 1 --odd 1 --out challenge"),
        (POLVERIFY, "plan root"),
        (POLVERIFY, "show root"),
        (POLVERIFY, "show bundle"),
    ],
)
def test_commands_without_training_never_load_torch(made, program, words):
    assert "torch" not in modules_after(program, *words.split(), cwd=made)
