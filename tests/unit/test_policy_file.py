"""Reading a policy: everything in it has a meaning or is an error, and the worked example of the spec is one."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from polstore.errors import CallerError, MissingError
from polstore.wire.environment import Environment
from polstore.wire.keys import KeyKind, SigningKey
from polstore.wire.segment import Norms, SegmentRecord
from polstore.wire.steps import Step, Steps
from polverify.coverage import MAX_LOSSES, MAX_ROWS, coverage, losses
from polverify.policy import Bounds, VerifierPolicy
from polverify.policy_file import MAX_POLICY_FILE, load_policy, parse_policy

SPEC = Path(__file__).parents[2] / "specs" / "policy.md"
RECORD = SegmentRecord(
    0, 0, 1, bytes(32), bytes(32), None, bytes(32), Environment("cpu", "c", "t", "AVX2", 1, ()), Norms(1, 1, 1, 1)
)
KEY = SigningKey("example.com/alice", bytes(32)).verifier_key(KeyKind.ED25519)


def parse(text: str, path: Path = Path("p.toml")) -> VerifierPolicy:
    return parse_policy(text.encode(), path)


def test_an_empty_policy_has_no_rules():
    assert parse("") == VerifierPolicy(digest=hashlib.sha256(b"").hexdigest())


def test_the_example_of_the_spec(tmp_path):
    text = SPEC.read_text()
    block = re.search(r"(?:^(?: {4}.*)?\n)+", text[text.index("    [trust]") :], re.MULTILINE)
    assert block is not None
    example = "".join(f"{line[4:]}\n" for line in block[0].split("\n"))
    for name in re.findall(r'"([a-z.]+\.py)"', example):
        (tmp_path / name).write_text("recipe")
    policy = parse(example, tmp_path / "p.toml")
    assert policy.keys == (tmp_path / "alice.pub",)
    assert policy.tlog_policy == tmp_path / "witnesses.policy"
    assert policy.recipes == (hashlib.sha256(b"recipe").digest(),)
    assert policy.bounds["lr"] == Bounds(1e-4, 1.0, 500)
    assert (policy.share, policy.detection) == (Fraction(1, 20), 0.95)
    unset = [name for name, value in vars(policy).items() if value in (None, {}, ()) and name not in UNUSED]
    assert unset == []  # the example shows every rule


UNUSED = {"key_name", "datasets", "device_names", "torch", "concatenation", "replayed_share"}  # by design too special


def test_keys_are_lines_or_files():
    policy = parse(f'[trust]\nkeys = ["{KEY.line()}", "sub/a.pub", "/abs/b.pub"]\n', Path("/etc/p.toml"))
    assert policy.keys == (KEY, Path("/etc/sub/a.pub"), Path("/abs/b.pub"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "unknown name"),
        ("[trusts]", "unknown name"),
        ("[trust]\nkey = []", "trust: unknown name"),
        ("[run]\nmax-every = 1", "run: unknown name"),
        ("[hyperparameters.lr]\nmin = 0.1\nlowest = 1", "lr: unknown name"),
        ("run = 1", "run: expected a table"),
        ("[[run]]", "run: expected a table"),
        ("[run]\nmax_every = true", "expected an integer"),
        ("[run]\nmax_every = 1.5", "expected an integer"),
        ("[run]\nmax_every = 0", "1 to"),
        ("[run]\nmax_every = '9'", "expected an integer"),
        ("[run]\nmin_steps = 9223372036854775807", "1 to"),
        ("[run]\nfidelities = 'lossless'", "a list of texts"),
        ("[run]\nfidelities = []", "1 to 1024 entries"),
        ("[run]\nfidelities = ['lossles']", "lossless"),
        ("[run]\noptimizers = [1]", "texts of"),
        ("[run]\noptimizers = ['']", "texts of"),
        ("[run]\ninitial = ['seeds']", "seed or parent"),
        ("[trust]\nledger = 1", "true or false"),
        ("[trust]\nkeys = ['a+00000000+AAAA']", "verifier key"),
        ("[trust]\norigins = ['*/run']", "an origin"),
        ("[trust]\norigins = ['/*']", "an origin"),
        ("[trust]\norigins = ['a*']", "an origin"),
        ("[recipe]\nsha256 = ['AB']", "64 hex digits"),
        ("[recipe]\nsha256 = ['" + "AB" * 32 + "']", "64 hex digits in lower case"),
        ("[hyperparameters]\nlr = 1", "a table"),
        ("[hyperparameters.lr]", "min or max"),
        ("[hyperparameters.lr]\nfrom_step = 3", "min or max"),
        ("[hyperparameters.lr]\nmin = nan", "lr: min"),
        ("[hyperparameters.lr]\nmin = true", "a number"),
        ("[hyperparameters.lr]\nmin = 2\nmax = 1", "at least 2"),
        ("[time]\nrequire = ['self-asserted']", "witnessed or timestamped"),
        ("[time]\nmax_age_seconds = -1", "0 to"),
        ("[time]\nexisted_by = 2026-01-01", "a date and time"),
        ("[time]\nexisted_by = 2026-01-01T00:00:00", "offset from UTC"),
        ("[time]\nexisted_by = '2026-01-01T00:00:00Z'", "a date and time"),
        ("[challenge]\nnonce = ['stale']", "fresh or witness"),
        ("[power]\nshare = 0.1", "share and detection together"),
        ("[power]\ndetection = 0.1", "share and detection together"),
        ("[power]\none_bad_segment = 0", "above 0"),
        ("[power]\none_bad_segment = 1.1", "above 0 to 1"),
        ("[power]\none_bad_segment = 95", "above 0 to 1"),
        ("[hyperparameters.lr]\nmin = 1" + "0" * 400, "at most 9007199254740992"),
        ("[hyperparameters.lr]\nmin = 1" + "0" * 5000, "not TOML"),
        ("[time]\nexisted_by = 0001-01-01T00:00:00+14:00", "from 1970 on"),
        ("[run\n", "not TOML"),
        ("[run]\nmax_every = 1\nmax_every = 2", "not TOML"),
    ],
)
def test_what_is_no_policy(text, says):
    with pytest.raises(CallerError, match=re.escape(says)):
        parse(text)


def test_files_that_are_no_policy(tmp_path):
    path = tmp_path / "p.toml"
    with pytest.raises(MissingError):
        load_policy(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CallerError, match="not TOML"):
        load_policy(path)
    path.write_bytes(b"#" * (MAX_POLICY_FILE + 1))
    with pytest.raises(CallerError):
        load_policy(path)
    path.write_text('[recipe]\nfiles = ["none.py"]\n')
    with pytest.raises(MissingError):
        load_policy(path)


# What the verdict says of coverage.


def test_long_runs_share_rows_and_keep_their_largest_norms():
    count = 3 * MAX_ROWS + 1
    records = [
        replace(RECORD, index=index, start_step=2 * index, end_step=2 * index + 2, norms=replace(RECORD.norms, l2=1.0))
        for index in range(count)
    ]
    records[7] = replace(records[7], norms=replace(RECORD.norms, l2=9.0))
    records[11] = replace(records[11], norms=replace(RECORD.norms, l2=float("nan")))
    rows = coverage(records, {10: "random", 11: "named"}, {10: "passed"})
    assert len(rows) <= MAX_ROWS + 2
    assert sum(row.count for row in rows) == count
    assert sum(row.l2 == 9.0 for row in rows) == 1
    opened = {row.index: row for row in rows if row.opened}
    assert {index: (row.count, row.opened, row.outcome) for index, row in opened.items()} == {
        10: (1, "random", "passed"), 11: (1, "named", None)
    }  # fmt: skip
    assert opened[11].l2 != opened[11].l2
    everything = coverage(records, dict.fromkeys(range(count), "named"), {})
    assert len(everything) <= MAX_ROWS
    short = coverage(records[:5], {}, {})
    assert [(row.index, row.count, row.start_step, row.end_step) for row in short] == [
        (index, 1, 2 * index, 2 * index + 2) for index in range(5)
    ]


def test_losses_are_thinned_out():
    def steps(start: int, values: list[float | None]) -> Steps:
        return Steps(start, tuple(Step((), (), value) for value in values))

    assert losses({1: steps(10, [None, 2.0]), 0: steps(0, [1.0, 1.5])}) == ((0, 1.0), (1, 1.5), (11, 2.0))
    many = losses({0: steps(0, [float(number) for number in range(5 * MAX_LOSSES + 1)])})
    assert len(many) <= MAX_LOSSES
    assert many[0] == (0, 0.0)
    assert many[-1][0] >= 5 * MAX_LOSSES - 6
