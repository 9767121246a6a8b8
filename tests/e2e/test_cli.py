"""A whole session by command line: record, commit, challenge, prove, check, and everything to look at on the way."""

import json
import os
import pty
import re
import subprocess
import sys

import command_line
import pytest
import torch
from safetensors.torch import load_file

import polstore
from polstore import keyfile
from polstore.wire import merkle
from polstore.wire.challenge import nonce_from_cosignature
from polstore.wire.checkpoint import parse_text
from polstore.wire.note import Note, cosign
from polstore.wire.note import parse as parse_note


@pytest.fixture
def shell(capsys, monkeypatch):
    threads = torch.get_num_threads()
    yield command_line.Shell(capsys, monkeypatch)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Two commits of one run with the challenge and bundle of each, made by processes."""
    path = tmp_path_factory.mktemp("session")
    (path / "recipe.py").write_text(command_line.RECIPE)

    def run(*words):
        code, out, err = command_line.finish(command_line.process(*words, cwd=path))
        assert code == 0, (words, out, err)
        return out

    made = {"keygen": run("polstore", "keygen", "--name", "example.com/alice", "--out", "key", "--json")}
    recording = ("polstore", "record", "recipe.py", "--store", "st", "--run", "r", "--every", 4, "--json")
    made["record"] = run(*recording, "--steps", 10, "--seed", 7, "--config", "lr=0.05")
    made["commit"] = run("polstore", "commit", "--store", "st", "--key", "key", "--out", "root1", "--json")
    challenge = ("polverify", "challenge", "root1", "--key", "key.pub", "--random", 1)
    made["challenge"] = run(*challenge, "--out", "challenge1", "--nonce", "ab" * 32, "--json")
    made["resume"] = run(*recording, "--steps", 17, "--resume", "--config", "lr=0.05")
    made["printed"] = run("polstore", "commit", "--store", "st", "--key", "key")
    (path / "root2").write_text(made["printed"])
    made["prove"] = run("polstore", "prove", "--store", "st", "--challenge", "challenge1", "--out", "bundle1", "--json")
    run("polstore", "prove", "--store", "st", "--segment", 4, "--segment", 1, "--out", "bundle2")
    made["check"] = run(
        *("polverify", "check", "root1", "--key", "key.pub", "--bundle", "bundle1"),
        *("--challenge", "challenge1", "--recipe", "recipe.py", "--json"),
    )
    return path, made


def test_what_programs_read(session):
    path, texts = session
    made = {name: json.loads(text) for name, text in texts.items() if name != "printed"}
    assert made["keygen"]["verifier_keys"] == (path / "key.pub").read_text().split()
    assert made["record"] == {"run": "r", "first_step": 0, "steps": 10, "every": 4}
    assert made["resume"] == {"run": "r", "first_step": 10, "steps": 17, "every": 4}
    assert made["commit"]["signed_root"] == (path / "root1").read_text()
    assert made["commit"]["leaves"] == 4
    assert made["challenge"]["nonce"] == "ab" * 32
    assert made["prove"]["segments"] == made["challenge"]["segments"]
    verdict = made["check"]
    assert (verdict["schema"], verdict["decision"]) == ("polverify/verdict/v2", "ACCEPT")
    assert verdict["claim"]["config"] == {"lr": 0.05}
    assert [item["index"] for item in verdict["segments"]] == made["prove"]["segments"]
    assert all(item["outcome"] == "passed" for item in verdict["segments"])


def test_a_proof_without_a_challenge_is_accepted_with_a_warning(session, shell):
    path, _ = session
    out = shell.ok(
        *("polverify", "check", path / "root2", "--key", path / "key.pub"),
        *("--bundle", path / "bundle2", "--recipe", path / "recipe.py"),
    )
    assert out.startswith("ACCEPT: 2 of 6 segments replayed bit for bit\n")
    assert "note: no challenge: the prover chose which segments to open\n" in out
    assert "\x1b" not in out


def test_choosing_by_the_records(session, shell, tmp_path):
    """Records first, then a challenge with the largest updates, the answer, and what the verdict says of its power."""
    path, _ = session
    key = ("--key", path / "key.pub")
    shell.ok("polstore", "prove", "--store", path / "st", "--records", "--out", tmp_path / "records")
    assert json.loads(shell.ok("polverify", "show", tmp_path / "records", "--json"))["opened"] == []
    code, out, _ = shell(
        *("polverify", "check", path / "root2", *key, "--bundle", tmp_path / "records", "--recipe", path / "recipe.py")
    )
    assert (code, out.splitlines()[0]) == (
        3,
        "INCONCLUSIVE: check 10 (replay): no segment is opened, so nothing was replayed",
    )
    chosen = ("--records", tmp_path / "records", "--top", 1, "--epoch-steps", 8, "--odd", 2)
    asked = json.loads(
        shell.ok(
            *("polverify", "challenge", path / "root2", *key, *chosen),
            *("--random", 1, "--segment", 2, "--out", tmp_path / "challenge", "--json"),
        )
    )
    assert asked["rules"] == {"top": 1, "epoch_steps": 8, "odd": 2}
    assert {0, 5} < set(asked["named"])
    assert {*asked["named"], *asked["picked"]} <= set(asked["segments"])
    shell.ok(
        *("polstore", "prove", "--store", path / "st", "--challenge", tmp_path / "challenge", "--audit"),
        *("--out", tmp_path / "bundle"),
    )
    words = ("polverify", "check", path / "root2", *key, "--bundle", tmp_path / "bundle")
    words = (*words, "--challenge", tmp_path / "challenge", "--recipe", path / "recipe.py")
    verdict = json.loads(shell.ok(*words, "--audit", "full", "--json"))
    assert (verdict["decision"], verdict["checks"][11]["detail"]) == ("ACCEPT", "norms of all segments")
    power = verdict["power"]
    assert (power["segments"], power["steps_trained"], power["concatenation"]["with_top"]) == (6, 17, 1.0)
    assert power["bytes_moved"] == (tmp_path / "bundle").stat().st_size
    assert power["steps_replayed"] == verdict["claim"]["steps_replayed"]
    assert (power["drawn"], power["population"]) == (asked["random"], 6 - len(asked["named"]) - len(asked["picked"]))
    out = shell.ok(*words, "--audit", "full")
    assert f"power: {power['bytes_moved']} bytes moved\n" in out
    assert "power: a concatenation is caught with probability 100 %" in out


def test_choosing_by_the_states_of_an_audit(session, shell, tmp_path):
    path, _ = session
    shell.ok("polstore", "prove", "--store", path / "st", "--leaves", 4, "--audit", "--out", tmp_path / "audit")
    asked = shell.ok(
        *("polverify", "challenge", path / "root1", "--key", path / "key.pub", "--records", tmp_path / "audit"),
        *("--odd", 3, "--random", 0, "--out", tmp_path / "challenge", "--json"),
    )
    assert json.loads(asked)["picked"] == []  # an honest run
    assert json.loads(asked)["segments"] == [0, 2]


def test_a_challenge_that_nobody_draws(session, shell, tmp_path):
    path, _ = session
    words = ("polverify", "challenge", path / "root2", "--key", path / "key.pub", "--random", 2)
    made = []
    for name in ("one", "two"):
        shell.ok(*words, "--nonce-from-root", "--out", tmp_path / name)
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
    assert json.loads(shell.ok("polverify", "show", tmp_path / "one", "--json"))["nonce_from"] == "root"
    note = parse_note((path / "root2").read_bytes())
    witness = keyfile.generate("example.net/witness", tmp_path / "witness")
    line = cosign(note.text, witness, 1_800_000_000)
    (tmp_path / "cosigned").write_bytes(Note(note.text, (*note.signatures, line)).encode())
    words = ("polverify", "challenge", tmp_path / "cosigned", *words[3:])
    shell.ok(*words, "--nonce-from-cosignature", tmp_path / "witness.pub", "--out", tmp_path / "three")
    shown = json.loads(shell.ok("polverify", "show", tmp_path / "three", "--json"))
    head = parse_text(note.text)
    expected = nonce_from_cosignature(head.origin, head.size, head.root, line)
    assert (shown["nonce_from"], shown["nonce"]) == ("witness", expected.hex())
    shell.ok("polstore", "prove", "--store", path / "st", "--challenge", tmp_path / "one", "--out", tmp_path / "bundle")
    out = shell.ok(
        *("polverify", "check", path / "root2", "--key", path / "key.pub", "--bundle", tmp_path / "bundle"),
        *("--challenge", tmp_path / "one", "--recipe", path / "recipe.py"),
    )
    assert "note: weak: the challenge follows from the signed root alone" in out


def test_plans(session, shell):
    path, _ = session
    shown = json.loads(shell.ok("polverify", "plan", "--segments", 390, "--json"))
    assert (shown["forged"], shown["random"], shown["opened"]) == (20, 78, 80)
    cost = ("--steps-per-segment", 100, "--step-seconds", 0.5, "--segment-bytes", 1000)
    out = shell.ok("polverify", "plan", "--segments", 390, *cost)
    assert out.splitlines()[0] == "random segments: 78"
    assert out.splitlines()[-1] == "cost: 20.5 % of the training, 8000 steps, 4000 s, 80000 bytes"
    assert json.loads(shell.ok("polverify", "plan", path / "root2", "--share", "1/6", "--json"))["random"] == 4


def test_both_roots_are_of_one_growing_tree(session):
    path, _ = session
    first, second = (parse_text(parse_note((path / name).read_bytes()).text) for name in ("root1", "root2"))
    assert (first.size, second.size) == (4, 7)
    with polstore.open(path / "st") as archive:
        run = archive.run("r")
        assert [run.tree_root(4), run.tree_root(7)] == [first.root, second.root]
        hashes = [merkle.leaf_hash(leaf) for leaf in run.leaves(7)]
        proof = merkle.consistency_proof(4, 7, merkle.nodes_of(hashes))
        merkle.verify_consistency(4, first.root, 7, second.root, proof)


def test_committing_again_gives_the_same_root(session, shell):
    path, made = session
    assert shell.ok("polstore", "commit", "--store", path / "st", "--key", path / "key") == made["printed"]


def test_looking_at_a_store(session, shell, monkeypatch):
    path, _ = session
    monkeypatch.setenv("POLSTORE_STORE", str(path / "st"))
    assert json.loads(shell.ok("polstore", "ls", "--json")) == [
        {
            "run": "r",
            "steps": 17,
            "segments": 6,
            "every": 4,
            "fidelity": "float16-writeback",
            "complete": True,
            "signed_segments": 6,
        }
    ]
    assert shell.ok("polstore", "ls").splitlines()[1].split("\t") == [
        *("r", "17", "6", "4", "float16-writeback", "yes", "6")
    ]
    shown = json.loads(shell.ok("polstore", "show", "--json"))
    assert shown["snapshots"] == [0, 4, 8, 10, 12, 16, 17]
    assert shown["signed_sizes"] == [4, 7]
    assert shown["config"] == {"lr": 0.05}
    assert shown["environment"]["device"] == "cpu"
    assert "initial state\tkind=seed, state=" in shell.ok("polstore", "show", "--run", "r")
    segment = json.loads(shell.ok("polstore", "show", "--segment", 2, "--json"))
    assert (segment["start_step"], segment["end_step"], len(segment["losses"])) == (8, 10, 2)
    assert "start step\t8\n" in shell.ok("polstore", "show", "--segment", 2)
    report = json.loads(shell.ok("polstore", "fsck", "--json"))
    assert (report["runs"], report["snapshots"], report["damages"]) == (1, 7, [])
    code, out, err = shell("polstore", "fsck")
    assert (code, out) == (0, "")
    assert re.fullmatch(r"no damage in \d+ blobs, 7 snapshots, 1 runs and 2 ledger entries\n", err)


def test_a_verdict_as_a_page(session, shell, tmp_path):
    """From the check itself and from its saved JSON: the same page."""
    path, _ = session
    check = ("polverify", "check", path / "root1", "--key", path / "key.pub", "--bundle", path / "bundle1")
    check += ("--challenge", path / "challenge1", "--recipe", path / "recipe.py")
    (tmp_path / "verdict").write_text(shell.ok(*check, "--html", tmp_path / "one.html", "--json"))
    assert shell.ok("polverify", "report", tmp_path / "verdict", "--out", tmp_path / "two.html") == ""
    page = (tmp_path / "one.html").read_text()
    assert page == (tmp_path / "two.html").read_text()
    assert "ACCEPT" in page
    assert "example.com/alice/r" in page
    code, out, _ = shell(*check, "--html", tmp_path / "no" / "folder.html", "--json")
    assert (code, out) == (4, "")  # and no verdict
    shell.fails(4, "polverify", "report", path / "root1", "--out", tmp_path / "x", says="not a verdict")
    shell.fails(4, "polverify", "report", tmp_path / "none", "--out", tmp_path / "x", says="none")


def test_a_policy_of_the_verifiers_own(session, shell, tmp_path):
    """Keys, rules and a tlog-policy in one file; paths in it are beside it."""
    path, _ = session
    policy = tmp_path / "mine.toml"
    check = ("polverify", "check", path / "root1", "--bundle", path / "bundle1", "--policy", policy)
    check += ("--challenge", path / "challenge1", "--recipe", path / "recipe.py", "--json")
    line = (path / "key.pub").read_text().split()[0]
    (tmp_path / "keys.pub").write_bytes((path / "key.pub").read_bytes())
    for keys in (f'["{line}"]', '["keys.pub"]', f'["{line}", "keys.pub"]'):
        policy.write_text(f"[trust]\nkeys = {keys}\n[run]\nmax_every = 4\n[hyperparameters]\nlr.min = 0.01\n")
        verdict = json.loads(shell.ok(*check))
        assert (verdict["decision"], verdict["policy"]["rules"]["run"]) == ("ACCEPT", {"max_every": 4})
    policy.write_text('[trust]\nkeys = ["keys.pub"]\n[run]\nmax_every = 3\n')
    code, out, _ = shell(*check)
    assert (code, json.loads(out)["decision"]) == (1, "REJECT")
    policy.write_text('[trust]\nkeys = ["keys.pub"]\n[challenge]\nnonce = ["witness"]\n')
    code, out, _ = shell(*check)
    assert (code, json.loads(out)["decision"]) == (3, "INCONCLUSIVE")
    policy.write_text('[trust]\nkeys = ["keys.pub"]\ntlog_policy = "witnesses"\n')
    (tmp_path / "witnesses").write_text("quorum none\n")
    shell.ok(*check)
    draw = ("polverify", "challenge", path / "root1", "--segments", 1, "--out", tmp_path / "c", "--policy")
    shell.ok(*draw, policy)
    for code, text, says in (
        (2, "[run]\n", "whose signature?"),
        (4, "[trust]\nkeys = ['none.pub']\n", "none.pub"),
        (4, "[trust]\nkeys = ['keys.pub']\ntlog_policy = 'none'\n", "none"),
        (4, "[trust]\nkeys = ['keys.pub']\n[runs]\nmax_every = 1\n", "unknown name"),
        (4, "quorum none\n", "not TOML"),
    ):
        policy.write_text(text)
        shell.fails(code, *check, says=says)
    (tmp_path / "mine.policy").write_text('[trust]\nkeys = ["keys.pub"]\n')  # TOML by another name is no tlog-policy
    shell.fails(4, *draw, tmp_path / "mine.policy", says="policy")


@pytest.mark.parametrize(
    ("name", "kind", "facts"),
    [
        ("root1", "signed root", {"origin": "example.com/alice/r", "leaves": 4, "segments": 3, "verified": False}),
        ("challenge1", "challenge", {"origin": "example.com/alice/r", "random": 1, "leaves": 4, "named": [0, 2]}),
        ("bundle1", "bundle", {"run": "r", "every": 4, "segments": 3, "verified": False, "config": {"lr": 0.05}}),
    ],
)
def test_what_a_file_claims(session, shell, name, kind, facts):
    path, _ = session
    shown = json.loads(shell.ok("polverify", "show", path / name, "--json"))
    assert shown["kind"] == kind
    assert facts.items() <= shown.items()
    assert shell.ok("polverify", "show", path / name).startswith(f"kind: {kind}\n")


def test_exported_weights_are_those_of_the_snapshot(session, shell):
    path, _ = session
    said = shell.ok("polstore", "export", "--store", path / "st", "--step", 12, path / "w.safetensors", "--json")
    assert json.loads(said) == {"run": "r", "step": 12, "out": str(path / "w.safetensors")}
    weights = load_file(path / "w.safetensors")
    with polstore.open(path / "st") as archive:
        state = archive.run("r").state(12)
    tensors = {
        tensor.name.partition("/")[2]: tensor
        for tensor in state.tensors
        if tensor.name.startswith(("parameter/", "buffer/"))
    }
    assert weights.keys() == tensors.keys()
    assert "1.running_mean" in weights
    for name, tensor in tensors.items():
        assert tuple(weights[name].shape) == tuple(tensor.shape)
        assert weights[name].numpy().tobytes() == tensor.data.tobytes()


COMMANDS = {
    ("polstore", "keygen"): "--name --out --encrypt --passphrase-file --json",
    ("polstore", "pubkey"): "--key --name --passphrase-file --json",
    (
        "polstore",
        "record",
    ): "--store --run --every --steps --fidelity --device --resume --sync --no-sync --seed --config "
    "--not-before --parent --parent-root --json RECIPE "
    "float16-writeback compact-writeback float16 lossless",
    ("polstore", "commit"): "--store --run --key --name --passphrase-file --out --json POLSTORE_STORE",
    ("polstore", "timestamp"): "SIGNED_ROOT --tsa --request --response --out --tsa-root --json",
    ("polstore", "prove"): "--store --run --segment --challenge --records --audit --leaves --out --json",
    ("polstore", "lineage"): "--store --run --parent --out --json",
    ("polstore", "ls"): "--store --json",
    ("polstore", "show"): "--store --run --segment --json",
    ("polstore", "fsck"): "--store --key --json",
    ("polstore", "export"): "--store --run --step --json OUT",
    ("polstore", "stats"): "--store --run --json",
    ("polstore", "gc"): "--store --yes --dry-run --json",
    ("polstore", "repack"): "--store --run --level --keyframe-every --dry-run --json",
    ("polstore", "copy"): "--from --to --run --json",
    ("polstore", "import"): "PATH --store --run --layout --json",
    ("polstore", "log"): "head prove consistency export-tiles witness",
    ("polstore", "log", "export-tiles"): "DIR --store --json",
    ("polstore", "log", "witness"): "URL --store --policy --witness-key --json",
    ("polstore", "log", "head"): "--store --size --out --json",
    ("polstore", "log", "prove"): "N --store --run --leaves --size --out --json",
    ("polstore", "log", "consistency"): "M N --store --out --json",
    (
        "polverify",
        "challenge",
    ): "SIGNED_ROOT --key --name --policy --segments --random --records --top --epoch-steps "
    "--odd --segment --nonce --nonce-from-cosignature --nonce-from-root --out --json",
    ("polverify", "plan"): "SIGNED_ROOT --segments --share --confidence --steps-per-segment --step-seconds --json",
    ("polverify", "check"): "SIGNED_ROOT --key --name --policy --timestamp --tsa-root --tsa-cert --bundle --challenge "
    "--ledger --segment --max-bytes --audit --recipe --device --lineage --parent-key --parent-name --parent-root "
    "--parent-proof --jobs --tolerant --html --json",
    ("polverify", "report"): "VERDICT --out",
    ("polverify", "chain"): "LINEAGE --key --name --policy --verdict --confidence --json",
    ("polverify", "log"): "HEAD --key --name --policy --state --consistency --max-age --json",
    ("polverify", "show"): "FILE --json",
}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_names_every_option(shell, command):
    page = shell.ok(*command, "--help")
    assert set(COMMANDS[command].split()) <= set(re.findall(r"[A-Za-z_0-9-]+", page))
    assert all(len(line) <= 80 for line in page.splitlines())
    summary = shell.ok(*command[:-1], "--help")
    assert re.search(rf"^  {command[-1]} .*[a-z]\.$", summary, re.MULTILINE), "the summary is cut"


def on_a_terminal(columns, *words, **env):
    """Run a command on a pseudo-terminal; return its exit code and what it wrote."""
    ours, theirs = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    child = subprocess.Popen(
        [command_line.BIN / words[0], *map(str, words[1:])],
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
        env=variables | {"COLUMNS": str(columns), "TERM": "xterm"} | env,
    )
    os.close(theirs)
    written = b""
    try:
        while data := os.read(ours, 65536):
            written += data
    except OSError:  # how a pseudo-terminal says that the other end is closed
        pass
    os.close(ours)
    return child.wait(60), written.decode()


@pytest.mark.skipif(sys.platform != "linux", reason="reads a pseudo-terminal as Linux has it")
@pytest.mark.parametrize("columns", [80, 140])
def test_a_verdict_on_a_terminal_cuts_nothing(session, columns):
    path, _ = session
    words = ("polverify", "check", path / "root1", "--key", path / "key.pub", "--bundle", path / "bundle1")
    code, written = on_a_terminal(columns, *words, "--recipe", path / "key")  # another file than the recipe
    assert code == 1
    assert "\x1b[1;31mREJECT\x1b[0m check 4 (manifest): recipe file: expected" in written
    assert "\x1b[31mFAILED" in written
    assert "…" not in written
    table = written[written.index("REJECT") :].replace("\r", "")
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in table.splitlines()) <= columns


@pytest.mark.skipif(sys.platform != "linux", reason="reads a pseudo-terminal as Linux has it")
def test_no_color_is_respected(session):
    path, _ = session
    code, written = on_a_terminal(80, "polstore", "show", "--store", path / "st", NO_COLOR="1")
    assert code == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", written)
