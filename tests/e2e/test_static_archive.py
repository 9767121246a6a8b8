"""A run published as static files, and checked from a directory and over HTTP, by fetching what the segments need."""

import datetime
import json
import shutil
import ssl
from ipaddress import IPv4Address

import command_line
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from polstore import keyfile
from polstore.codec.live.recipe import RecipeFile
from polstore.prover import commit
from polstore.publish import publish
from polstore.reader import open_archive
from polstore.recording import record_recipe
from polstore.storage.store import open_store
from polstore.wire import note as notes
from polstore.wire.checkpoint import parse_text
from polstore.wire.keys import SigningKey
from tests.static_server import serving

KEY = SigningKey("example.com/alice", bytes(range(32)))
SEGMENTS = 40
RECIPE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import polstore


def build(device, hidden=192):
    inputs = torch.arange(300 * 24, dtype=torch.float32).reshape(300, 24).sin()
    model = nn.Sequential(nn.Linear(24, hidden), nn.ReLU(), nn.Linear(hidden, 32), nn.ReLU(), nn.Linear(32, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return polstore.Training(model, optimizer, DataLoader(TensorDataset(inputs, torch.arange(300) % 5), batch_size=6))


def step(training, batches):
    inputs, labels = next(batches)
    loss = nn.functional.cross_entropy(training.model(inputs), labels)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    return loss
"""


@pytest.fixture
def shell(capsys, monkeypatch):
    threads = torch.get_num_threads()
    yield command_line.Shell(capsys, monkeypatch)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of many segments in a store, its signed root, keys and recipe; and the archive."""
    path = tmp_path_factory.mktemp("static")
    (path / "recipe.py").write_text(RECIPE)
    threads = torch.get_num_threads()
    recorder, training, loaded = record_recipe(
        RecipeFile.read(path / "recipe.py"), every=1, store=path / "st", run="long", seed=3
    )
    with recorder:
        recorder.train(training, loaded.step, SEGMENTS, lambda _done, _loss: None)
    torch.set_num_threads(threads)
    with open_store(path / "st") as store:
        (path / "root").write_bytes(commit(store, "long", KEY))
    (path / "key.pub").write_text("".join(f"{key.line()}\n" for key in KEY.verifier_keys()))
    assert keyfile.load_verifier_keys(path / "key.pub") == KEY.verifier_keys()
    with open_archive(path / "st") as archive:
        publish(archive, path / "www", ["long"], lambda *_: None)
    return path


def check_words(path, bundle, *more):
    words = ("polverify", "check", path / "root", "--key", path / "key.pub", "--recipe", path / "recipe.py")
    return (*words, "--bundle", bundle, *more)


def total(directory):
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def test_a_challenge_is_answered_by_a_web_server_alone(made, shell, tmp_path):
    words = ("polverify", "challenge", made / "root", "--key", made / "key.pub", "--random", 0)
    shell.ok(*words, "--out", tmp_path / "challenge", "--nonce", "5b" * 32)
    segments = json.loads(shell.ok("polverify", "show", tmp_path / "challenge", "--json"))["segments"]
    with serving(made / "www") as server:
        options = ("--challenge", tmp_path / "challenge", "--json")
        code, out, err = shell(*check_words(made, server.address, *options))
        assert code == 0, (out, err)
    verdict = json.loads(out)
    assert verdict["decision"] == "ACCEPT"
    assert [item["index"] for item in verdict["segments"]] == segments
    fetched, whole = verdict["claim"]["bytes_fetched"], verdict["claim"]["bytes_in_archive"]
    assert verdict["power"]["bytes_moved"] == fetched
    assert f"fetched {fetched} bytes; the archive says that the run takes {whole} bytes" in err
    assert whole == total(made / "www") - (made / "www/run/long/size").stat().st_size
    assert len(server.asked) == len(set(server.asked))  # nothing twice
    on_disk = sum((made / "www" / name.lstrip("/")).stat().st_size for name in server.asked)
    assert fetched == on_disk
    # Two segments of 40 need four to six snapshots of 41, a keyframe or two among them, and all the leaves.
    assert fetched < 0.2 * whole, fetched / whole


def test_a_directory_serves_as_well(made, shell):
    words = check_words(made, made / "www", "--segment", 17, "--segment", 3, "--segment", 17, "--json")
    out = shell.ok(*words)
    assert shell.ok(*words, "--jobs", 2) == out
    verdict = json.loads(out)
    assert [item["index"] for item in verdict["segments"]] == [3, 17]
    assert verdict["warnings"][-1] == "no challenge: the caller named which segments to open"
    assert 0 < verdict["claim"]["bytes_fetched"] < 0.25 * verdict["claim"]["bytes_in_archive"]


def test_the_archive_says_the_same_as_a_bundle(made, shell, tmp_path):
    shell.ok("polstore", "prove", "--store", made / "st", "--segment", 39, "--out", tmp_path / "bundle")
    ours = json.loads(shell.ok(*check_words(made, tmp_path / "bundle", "--json")))
    theirs = json.loads(shell.ok(*check_words(made, made / "www", "--segment", 39, "--json")))
    assert theirs["power"].pop("bytes_moved") == theirs["claim"].pop("bytes_fetched")
    assert ours["power"].pop("bytes_moved") == (tmp_path / "bundle").stat().st_size
    del theirs["claim"]["bytes_in_archive"]
    chosen = [verdict["coverage"][39].pop("opened") for verdict in (ours, theirs)]
    assert chosen == ["prover", "caller"]  # which is what the warnings say, too
    assert theirs | {"warnings": []} == ours | {"warnings": []}  # down to the length of the bundle, in check 0


def test_an_archive_below_a_path_and_behind_a_slash(made, shell):
    with serving(made) as server:
        shell.ok(*check_words(made, server.address + "/www/", "--segment", 0))


def test_https_with_a_certificate_that_is_known(made, shell, tmp_path, monkeypatch):
    key, now = Ed25519PrivateKey.generate(), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = builder.sign(key, None).public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "both.pem").write_bytes(private + certificate)
    (tmp_path / "known.pem").write_bytes(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    with serving(made / "www") as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        words = check_words(made, server.address.replace("http:", "https:"), "--segment", 0)
        shell.fails(4, *words, says="CERTIFICATE_VERIFY_FAILED")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "known.pem"))
        shell.ok(*words)


def test_a_reader_follows_an_older_root(made, shell, tmp_path):
    """The run was published at 41 leaves only; a reader with a root over 11 finds the wider tiles."""
    store = tmp_path / "st"
    shutil.copytree(made / "st", store)
    with open_store(store) as opened:
        from polstore.wire.checkpoint import Checkpoint, run_origin, sign_root

        with opened.read() as view:
            root = view.tree_root("long", 11)
        (tmp_path / "root").write_bytes(sign_root(Checkpoint(run_origin(KEY.name, "long"), 11, root), KEY, 1))
    words = ("polverify", "check", tmp_path / "root", "--key", made / "key.pub", "--recipe", made / "recipe.py")
    missing = "tile/entries/000.p/11"
    assert not (made / "www/run/long" / missing).exists()
    shutil.copytree(made / "www", tmp_path / "www")
    code, _, err = shell(*words, "--bundle", tmp_path / "www", "--segment", 9)
    assert (code, "no such file" in err.lower()) == (4, True)  # neither that tile nor a full one
    for kind in ("entries", "0"):
        wide = (tmp_path / f"www/run/long/tile/{kind}/000.p/41").read_bytes()
        rest = (256 - 41) * (b"\0\1x" if kind == "entries" else bytes(32))
        (tmp_path / f"www/run/long/tile/{kind}/000").write_bytes(wide + rest)
    shell.ok(*words, "--bundle", tmp_path / "www", "--segment", 9)


def test_publishing_by_command_line(made, shell, tmp_path):
    words = ("polstore", "publish", tmp_path / "www", "--store", made / "st")
    first = json.loads(shell.ok(*words, "--json"))
    assert first["unsigned"] == []
    assert (first["published"][0]["run"], first["published"][0]["added"]) == ("long", SEGMENTS)
    ledger = total(tmp_path / "www/tile") + (tmp_path / "www/checkpoint").stat().st_size
    assert first["published"][0]["bytes"] == total(tmp_path / "www") - ledger
    assert first["ledger"] == parse_text(notes.parse((tmp_path / "www/checkpoint").read_bytes()).text).size > 0
    code, out, err = shell(*words, "--run", "long")
    assert (code, out) == (0, "")
    assert "40 segments, 0 of them new; wrote 0 files of 0 bytes" in err
    shell.fails(4, *words, "--run", "nobody", says="no run nobody")
    assert "salts" in shell.ok("polstore", "publish", "--help")


@pytest.mark.parametrize(
    ("code", "location", "more", "says"),
    [
        (2, "www", (), "what to open"),
        (2, "www", ("--segment", "40"), "segments to open"),
        (2, "www", ("--segment", "-1"), "segments to open"),
        (2, "root", ("--segment", "1"), "--segment: expected a static archive"),
        (2, "www", ("--segment", "1", "--audit", "full"), "--audit full: expected a bundle"),
        (4, "www", ("--segment", "1", "--max-bytes", "9000"), "too much to fetch"),
        (2, "st", ("--segment", "1"), "--segment: expected a static archive"),
        (4, "st", (), "no bundle"),
        (4, "http://127.0.0.1:1", ("--segment", "1"), "cannot be fetched"),
        (4, "http://no.such.host.invalid", ("--segment", "1"), "cannot be fetched"),
        (2, "http://", ("--segment", "1"), "address of an archive"),
        (2, "http://host:port", ("--segment", "1"), "address of an archive"),
        (2, "https://me:secret@host", ("--segment", "1"), "address of an archive"),
        (2, "http://host/?query", ("--segment", "1"), "address of an archive"),
    ],
)
def test_a_caller_s_mistakes(made, shell, code, location, more, says):
    bundle = location if "//" in location else made / location
    shell.fails(code, *check_words(made, bundle, *more), says=says)
