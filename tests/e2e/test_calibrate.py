"""polverify calibrate and the options of polverify check that go with it, as a user runs them."""

import json

import pytest
import torch
from command_line import process

from polstore import keyfile
from polstore.wire.keys import VerifierKey
from tests.attacks import forge
from tests.attacks.elsewhere import RECIPE, Elsewhere


@pytest.fixture(scope="module")
def proof(tmp_path_factory):
    """A run of another class, signed by a stranger: root, bundle, key and the verifier's copy of the recipe."""
    path = tmp_path_factory.mktemp("elsewhere")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    evidence = Elsewhere(config={"kind": "conv"}, fidelity="lossless", steps=4, every=2).run()
    torch.set_num_threads(threads)
    (path / "root").write_bytes(evidence.root)
    (path / "bundle").write_bytes(evidence.data())
    (path / "key.pub").write_text("".join(f"{key.line()}\n" for key in forge.KEY.verifier_keys()))
    (path / "recipe.py").write_bytes(RECIPE.source)
    assert all(isinstance(key, VerifierKey) for key in keyfile.load_verifier_keys(path / "key.pub"))
    return path


def given(path):
    return [path / "root", "--bundle", path / "bundle", "--recipe", path / "recipe.py", "--key", path / "key.pub"]


@pytest.fixture(scope="module")
def calibration(proof):
    made = proof / "calibration"
    child = process("polverify", "calibrate", *given(proof), "--out", made, "--dref", 2, "--json", env=CALM)
    out, err = child.communicate()
    assert child.returncode == 0, err
    assert json.loads(out) == json.loads(made.read_bytes())
    assert "measured the noise of 2 segments" in err
    return made


CALM = {"OMP_NUM_THREADS": "1"}


def test_noise_measured_beforehand_decides(proof, calibration, polverify):
    found = json.loads(calibration.read_bytes())
    settings = {tuple(segment["settings"]) for segment in found["segments"].values()}
    assert settings == {("threads", "onednn", "rounding-1", "rounding-2", "rounding-3", "capability")}
    assert found["d_ref"]["steps"] == 2
    verdict = json.loads(polverify(0, "check", *given(proof), "--calibration", calibration, "--json"))
    assert verdict["decision"] == "ACCEPT"
    assert "within tolerance" in verdict["reason"]
    for segment in verdict["segments"]:
        assert segment["epsilon"]["raw"]["l2"] > 0
        ratio = segment["epsilon"]["raw"]["l2"] / found["d_ref"]["l2"]
        assert segment["epsilon"]["normalised"]["l2"] == pytest.approx(ratio)
        assert "capability" in segment["tolerance"]["settings"]


def test_in_plain_text(proof, calibration, polverify):
    out = polverify(0, "check", *given(proof), "--calibration", calibration, "--evaluate")
    assert "segment 0: ε raw l1 " in out
    assert "; normalised l1 " in out
    assert "segment 1: evaluation after step 4: loss " in out
    assert "weaker than bit for bit" in out


def test_the_papers_criterion(proof, calibration, polverify):
    assert "the paper's criterion, raw l2" in polverify(1, "check", *given(proof), "--tolerant", "--delta", "1e-12")
    words = ("--calibration", calibration, "--delta", "1e-12", "--metric", "cos", "--dref", "1e-9")
    assert "the paper's criterion, normalised cos" in polverify(1, "check", *given(proof), *words)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--delta", "-1"), 2, "delta"),
        (("--delta", "nan"), 2, "delta"),
        (("--delta", "1", "--metric", "l3"), 2, "metric"),
        (("--dref", "0"), 2, "d_ref"),
        (("--dref", "nothing"), 4, "nothing"),
        (("--calibration", "nothing"), 4, "nothing"),
    ],
)
def test_options_that_make_no_sense(proof, polverify, words, code, says):
    assert says in polverify(code, "check", *given(proof), *words)


def test_odd_calibrations_are_the_callers_fault(proof, calibration, polverify, tmp_path):
    whole = json.loads(calibration.read_bytes())
    odd = tmp_path / "odd"
    for change, says in (
        (whole | {"recipe": "00" * 32}, "another recipe"),
        (whole | {"machine": whole["machine"] | {"device_name": "Elsewhere 9000"}}, "another machine"),
        (whole | {"schema": "polverify/calibration/v0"}, "schema"),
        (whole | {"segments": {key: value | {"losses": []} for key, value in whole["segments"].items()}}, "steps"),
    ):
        odd.write_text(json.dumps(change))
        assert says in polverify(4, "check", *given(proof), "--calibration", odd)
    odd.write_bytes(b"\x80\x04pickle")
    assert "not a calibration" in polverify(4, "check", *given(proof), "--calibration", odd)


def test_a_segment_that_was_not_measured_is_undecided(proof, calibration, polverify, tmp_path):
    empty = tmp_path / "empty"
    empty.write_text(json.dumps(json.loads(calibration.read_bytes()) | {"segments": {}}))
    assert "was not measured" in polverify(3, "check", *given(proof), "--calibration", empty)
    assert polverify(0, "check", *given(proof), "--calibration", empty, "--tolerant").startswith("ACCEPT")


def test_noise_of_a_forged_bundle_is_not_measured(proof, tmp_path):
    bundle = bytearray((proof / "bundle").read_bytes())
    bundle[-1] ^= 1
    (tmp_path / "bundle").write_bytes(bundle)
    words = [*given(proof)[:2], tmp_path / "bundle", *given(proof)[3:]]
    child = process("polverify", "calibrate", *words, "--out", tmp_path / "made", env=CALM)
    _, err = child.communicate()
    assert child.returncode == 1
    assert "damaged" in err.splitlines()[-1]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("words", [("--settings", "threads,nonsense"), ("--settings", ""), ("--dref", "0")])
def test_settings_that_make_no_sense(proof, polverify, tmp_path, words):
    polverify(2, "calibrate", *given(proof), "--out", tmp_path / "made", *words)


@pytest.fixture
def polverify(capsys, monkeypatch):
    """Run polverify in this process, require an exit code, and return what it said."""
    import sys

    from command_line import polverify_main

    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled

    def run(code, *words):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["polverify", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            polverify_main()
        out, err = capsys.readouterr()
        assert ended.value.code == code, (out, err)
        return out if code in (0, 1, 3) else err

    yield run
    torch.set_num_threads(threads)
    torch.backends.mkldnn.set_flags(onednn)
