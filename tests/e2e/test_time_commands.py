"""Time and keys on the command line: foreign and encrypted keys, rotation, policies, time authorities, lower bounds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import termios
import time

import command_line
import pytest
import torch

from polstore.wire import note as notes
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.keys import KeyKind, SigningKey
from polstore.wire.merkle import EMPTY_ROOT
from tests.interop import authority
from tests.loopback import serving

pytestmark = pytest.mark.skipif(
    not (authority.is_there() and shutil.which("ssh-keygen")), reason="openssl or ssh-keygen is not installed"
)

NAME = "example.com/alice"
WITNESS = SigningKey("witness.example/1", bytes(32))
LOG = SigningKey("log.example", bytes([9]) * 32)
SECRET = "correct horse"


@pytest.fixture(scope="module", autouse=True)
def _threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def shell(capsys, monkeypatch):
    monkeypatch.delenv("POLSTORE_PASSPHRASE", raising=False)
    return command_line.Shell(capsys, monkeypatch)


def cosigned(note, time):
    return note + notes.cosign(notes.parse(note).text, WITNESS, time).line().encode()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that commits to a witnessed checkpoint, and keys of several kinds."""
    from polstore import keyfile
    from polstore.cli import writing

    path = tmp_path_factory.mktemp("made")
    (path / "recipe.py").write_text(command_line.RECIPE)
    head = sign_root(Checkpoint(LOG.name, 0, EMPTY_ROOT), LOG, 1)
    (path / "unwitnessed").write_bytes(notes.Note(notes.parse(head).text, notes.parse(head).signatures[:1]).encode())
    (path / "checkpoint").write_bytes(cosigned(head, 1_700_000_000))
    writing.record(path / "recipe.py", path / "st", "r", every=2, steps=4, seed=1, not_before=path / "checkpoint")
    (path / "secret").write_text(SECRET + "\nmore\n")
    keyfile.generate(NAME, path / "old")
    keyfile.generate(NAME, path / "new", SECRET.encode())
    keyfile.generate("example.com/bob", path / "bob")
    ssh = ["ssh-keygen", "-q", "-t", "ed25519", "-C", "alice@laptop", "-N", SECRET, "-f", str(path / "ssh")]
    subprocess.run(ssh, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def rotated(made):
    """The run signed with the old and the new key, a bundle of it, and policies."""
    from polstore.cli import writing

    writing.commit(made / "st", [made / "old", made / "new"], "r", made / "root", passphrase_file=made / "secret")
    writing.prove(made / "st", made / "bundle", "r", segment=[1])
    logs = [made.joinpath(f"{name}.pub").read_text().split()[0] for name in ("old", "new")]
    witness = f"witness w {WITNESS.verifier_key(KeyKind.COSIGNATURE).line()}\n"
    (made / "policy").write_text(f"log {logs[0]}\nlog {logs[1]}\n{witness}quorum w\n")
    (made / "new.policy").write_text(f"log {logs[1]}\n{witness}quorum none\n")
    (made / "broken.policy").write_text(f"log {logs[1]}\n")
    (made / "witnessed").write_bytes(cosigned((made / "root").read_bytes(), 1_900_000_000))
    return made


def check(made, root, *words):
    return ("polverify", "check", made / root, "--bundle", made / "bundle", "--recipe", made / "recipe.py", *words)


def verdict_of(shell, code, *words):
    got, out, err = shell(*words, "--json")
    assert got == code, (out, err)
    return json.loads(out)


# Keys.


def test_keys_with_a_passphrase(made, shell, monkeypatch):
    new, ssh = made / "new", made / "ssh"
    lines = (made / "new.pub").read_text()
    assert shell.ok("polstore", "pubkey", "--key", new, "--passphrase-file", made / "secret") == lines
    monkeypatch.setenv("POLSTORE_PASSPHRASE", SECRET)
    assert shell.ok("polstore", "pubkey", "--key", new) == lines
    out = json.loads(shell.ok("polstore", "pubkey", "--key", ssh, "--name", NAME, "--json"))
    assert out["name"] == NAME
    shell.fails(4, "polstore", "pubkey", "--key", ssh, says="does not name its key")
    monkeypatch.setenv("POLSTORE_PASSPHRASE", "wrong")
    assert "wrong" in shell.fails(4, "polstore", "pubkey", "--key", new, says="cannot be decrypted")
    monkeypatch.delenv("POLSTORE_PASSPHRASE")
    shell.fails(4, "polstore", "pubkey", "--key", new, says="is encrypted")  # stdin is no terminal here
    shell.fails(4, "polstore", "pubkey", "--key", new, "--passphrase-file", made / "none", says="o such file")


def test_making_an_encrypted_key(made, shell, tmp_path, monkeypatch):
    make = ("polstore", "keygen", "--name", NAME, "--out", tmp_path / "key")
    shell.fails(2, *make, "--encrypt", says="needs a passphrase")
    shell.fails(2, *make, "--passphrase-file", made / "secret", says="--encrypt with it")
    monkeypatch.setenv("POLSTORE_PASSPHRASE", "")
    shell.fails(2, *make, "--encrypt", says="needs a passphrase")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv("POLSTORE_PASSPHRASE")
    printed = shell.ok(*make, "--encrypt", "--passphrase-file", made / "secret")
    shown = ("polstore", "pubkey", "--key", tmp_path / "key", "--passphrase-file", made / "secret")
    assert shell.ok(*shown) == printed == (tmp_path / "key.pub").read_text()


def test_a_passphrase_is_asked_for_on_a_terminal(made):
    ours, theirs = os.openpty()
    child = subprocess.Popen(
        [command_line.BIN / "polstore", "pubkey", "--key", made / "new"],
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "POLSTORE_PASSPHRASE"},
        start_new_session=True,  # without a terminal of its own, so it asks on stdin
    )
    asked = b""
    while b"Passphrase for" not in asked:
        asked += os.read(ours, 1000)
    while termios.tcgetattr(theirs)[3] & termios.ECHO:  # what is typed before that is dropped
        time.sleep(0.01)
    os.write(ours, SECRET.encode() + b"\n")
    os.close(theirs)
    out, _ = child.communicate(timeout=60)
    os.close(ours)
    assert (child.returncode, out.decode()) == (0, (made / "new.pub").read_text())
    assert SECRET.encode() not in asked


def test_keys_that_do_not_go_together(made, shell, tmp_path):
    commit = ("polstore", "commit", "--store", made / "st", "--out", tmp_path / "root")
    shell.fails(2, *commit, "--key", made / "old", "--key", made / "bob", says="expected one name")
    shell.fails(2, *commit, "--key", made / "old", "--key", made / "old", says="each key once")
    assert not (tmp_path / "root").exists()


# Rotation and policies.


def test_rotation(rotated, shell):
    assert len(notes.parse((rotated / "root").read_bytes()).signatures) == 4
    for keys in (["old.pub"], ["new.pub"], ["old.pub", "new.pub"]):
        shell.ok(*check(rotated, "root", *(word for key in keys for word in ("--key", rotated / key))))
    code, out, _ = shell(*check(rotated, "root", "--key", rotated / "old.pub", "--key", rotated / "bob.pub"))
    assert (code, out.partition(":")[0]) == (1, "REJECT")
    shell.ok(*check(rotated, "root", "--policy", rotated / "new.policy"))
    again = ("polstore", "commit", "--store", rotated / "st", "--key", rotated / "old")
    assert shell.ok(*again) == (rotated / "root").read_text()  # signed once, and by this key too


def test_a_quorum_by_policy_file(rotated, shell):
    policy = ("--policy", rotated / "policy")
    verdict = verdict_of(shell, 0, *check(rotated, "witnessed", *policy))
    witnessed, bound = verdict["claim"]["time"]
    assert (witnessed["kind"], witnessed["by"], witnessed["quorum_met"]) == ("witnessed", "w", True)
    assert (bound["kind"], bound["verified"], bound["time"]) == ("not before", True, 1_700_000_000)
    refused = verdict_of(shell, 1, *check(rotated, "root", *policy))
    assert refused["reason"].startswith("check 2 (time): quorum of witnesses: expected w, got cosigned by nobody")
    out = rotated / "challenge"
    shell.ok("polverify", "challenge", rotated / "witnessed", *policy, "--segments", "1", "--out", out)
    shell.fails(4, *check(rotated, "root", "--policy", rotated / "broken.policy"), says="quorum of a policy")
    shell.fails(4, *check(rotated, "root", "--policy", rotated / "none"), says="o such file")
    shell.fails(2, *check(rotated, "root"), says="whose signature?")


# Lower bounds.


def test_only_a_witnessed_checkpoint_bounds_from_below(made, shell, tmp_path):
    record = ("polstore", "record", made / "recipe.py", "--store", tmp_path / "st", "--run", "x", "--every", "2")
    for name, says in (("unwitnessed", "a witness has cosigned"), ("recipe.py", "signature line")):
        shell.fails(2, *record, "--not-before", made / name, says=says)
    shell.fails(4, *record, "--not-before", made / "none", says="o such file")
    assert not (tmp_path / "st").exists()


def test_a_resumed_run_keeps_its_lower_bound(made, shell, tmp_path):
    record = ("polstore", "record", made / "recipe.py", "--store", tmp_path / "st", "--run", "x", "--every", "2")
    shell.ok(*record, "--steps", "2", "--not-before", made / "checkpoint")
    shell.ok(*record, "--steps", "3", "--resume")
    shell.ok(*record, "--steps", "4", "--resume", "--not-before", made / "checkpoint")
    other = tmp_path / "other"
    other.write_bytes(cosigned((made / "unwitnessed").read_bytes(), 1_800_000_000))
    shell.fails(2, *record, "--steps", "5", "--resume", "--not-before", other, says="another checkpoint to begin after")


# Time authorities.


@pytest.fixture(scope="module")
def tsa(made):
    root = authority.Signer("Root of Time", ca=True)
    (made / "tsa-root.pem").write_bytes(root.pem())
    (made / "other-root.pem").write_bytes(authority.Signer("Root of Time", ca=True).pem())
    return authority.Signer("Clock of Example", root)


def test_a_token_over_files(rotated, shell, tsa, tmp_path):
    root = tmp_path / "root"
    root.write_bytes((rotated / "root").read_bytes())
    stamp = ("polstore", "timestamp", root)
    query, answer = tmp_path / "q.tsq", tmp_path / "a.tsr"
    shell.ok(*stamp, "--request", query)
    shell.fails(4, *stamp, "--request", query, says="exists already")
    answer.write_bytes(authority.reply(tmp_path, query.read_bytes(), tsa))
    token = json.loads(
        shell.ok(
            *(*stamp, "--request", query, "--response", answer, "--tsa-root", rotated / "tsa-root.pem", "--json"),
        )
    )
    assert token["authority"] == "CN=Clock of Example"
    kept = tmp_path / "root.tsr"
    assert kept.read_bytes() == answer.read_bytes()
    shell.fails(4, *stamp, "--response", answer, says="exists already")

    roots = ("--tsa-root", rotated / "tsa-root.pem")
    key = ("--key", rotated / "old.pub")
    verdict = verdict_of(shell, 0, *check(rotated, "root", *key, "--timestamp", kept, *roots))
    piece = verdict["claim"]["time"][1]
    assert (piece["kind"], piece["by"], piece["time"]) == ("timestamped", "CN=Clock of Example", token["time"])
    assert not any("no independent witness" in warning for warning in verdict["warnings"])
    late = verdict_of(shell, 0, *check(rotated, "witnessed", *key, "--timestamp", kept, *roots))
    assert late["claim"]["time"][1]["kind"] == "timestamped"  # further signatures do not touch it

    others = ("--tsa-root", rotated / "other-root.pem")
    refused = verdict_of(shell, 1, *check(rotated, "root", *key, "--timestamp", kept, *others))
    assert refused["reason"].startswith("check 2 (time): issuer of a certificate")
    shell.fails(2, *check(rotated, "root", *key, "--timestamp", kept), says="--tsa-root with it")
    shell.fails(2, *check(rotated, "root", *key, *roots), says="--timestamp with it")
    shell.fails(4, *check(rotated, "root", *key, "--timestamp", kept, "--tsa-root", kept), says="certificate")


def test_a_response_to_another_request_is_not_kept(rotated, shell, tsa, tmp_path):
    root = tmp_path / "root"
    root.write_bytes((rotated / "root").read_bytes())
    stamp = ("polstore", "timestamp", root)
    for name in ("one", "two"):
        shell.ok(*stamp, "--request", tmp_path / name)
    answer = tmp_path / "a.tsr"
    answer.write_bytes(authority.reply(tmp_path, (tmp_path / "one").read_bytes(), tsa))
    shell.fails(4, *stamp, "--request", tmp_path / "two", "--response", answer, says="nonce")
    shell.fails(
        *(4, *stamp, "--request", tmp_path / "one", "--response", answer, "--tsa-root", rotated / "other-root.pem"),
        says="issuer of a certificate",
    )
    shell.fails(2, *stamp, says="neither")
    shell.fails(2, *stamp, "--tsa", "http://127.0.0.1:1/", "--response", answer, says="both")
    shell.fails(1, "polstore", "timestamp", answer, "--request", tmp_path / "three", says="note")
    assert not (tmp_path / "root.tsr").exists()
    code, _, err = shell(*stamp, "--response", answer)
    assert (code, "nonce was not checked" in err) == (0, True)


def test_a_token_over_http(rotated, shell, tsa, tmp_path):
    root = tmp_path / "root"
    root.write_bytes((rotated / "root").read_bytes())

    def answer(_path, body):
        return 200, "application/timestamp-reply", authority.reply(tmp_path, body, tsa)

    with serving(answer) as url:
        shell.ok("polstore", "timestamp", root, "--tsa", url)
    key = ("--key", rotated / "old.pub", "--tsa-root", rotated / "tsa-root.pem")
    shell.ok(*check(rotated, "root", *key, "--timestamp", tmp_path / "root.tsr"))
    (tmp_path / "root.tsr").unlink()
    replayed = authority.reply(tmp_path, (tmp_path / "request.tsq").read_bytes(), tsa)
    for bad, says in (
        ((200, "x", replayed), "nonce"),
        ((200, "x", b"<h1>hello"), "time-stamping response"),
        ((200, "x", bytes(2**17)), "at most 65536 bytes"),
        ((500, "x", replayed), "status"),
        (b"", "no answer"),
    ):
        with serving(lambda _path, _body, bad=bad: bad) as url:
            shell.fails(4, "polstore", "timestamp", root, "--tsa", url, says=says)
    shell.fails(2, "polstore", "timestamp", root, "--tsa", "file:///etc/passwd", says="address")
    assert not (tmp_path / "root.tsr").exists()
