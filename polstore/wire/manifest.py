"""The manifest: a run's leaf 0, everything that was declared before training.

Implements specs/run-records.md, section "Manifest". Judges nothing: whether a declaration is acceptable is the
verifier's policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.errors import MalformedError
from polstore.wire import canonical, merkle
from polstore.wire.checkpoint import MAX_ORIGIN
from polstore.wire.environment import Environment
from polstore.wire.extensions import MAX_EXTENSIONS, Extensions, parse_extensions
from polstore.wire.fields import Fields
from polstore.wire.randomness import SEED_SIZE
from polstore.wire.state import check_order

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = ["MAX_LEAF", "MAX_NOT_BEFORE", "RUN_NAME", "Dataset", "Initial", "Manifest", "Optimizer", "Parent", "Recipe"]

MAX_LEAF = 65_535  # bytes: the longest entry that a C2SP tile bundle can carry
RUN_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MAX_NOT_BEFORE = 16_384  # bytes of a witnessed checkpoint note
MAX_CONFIG = 256  # entries of a recipe's configuration
MAX_CONFIG_TEXT = 4096  # characters of one text value
MAX_EVERY = 1_000_000  # steps of a segment

NO_DIGEST = bytes(32)
RECIPE_KINDS = ("file", "none")
INITIAL_KINDS = ("seed", "parent", "distribution")
SAMPLER_KINDS = ("seed", "free")


@dataclass(frozen=True)
class Recipe:
    """How to rebuild model, loss and optimizer.

    Attributes:
        kind: ``file`` (a Python file the verifier has) or ``none`` (the run can be audited but not replayed).
        digest: SHA-256 of the file; 32 zero bytes for ``none``.
        config: sorted (name, scalar) pairs handed to the recipe's ``build``.
    """

    kind: str
    digest: bytes
    config: tuple[tuple[str, bool | int | float | str | None], ...] = ()

    def value(self) -> Value:
        """Return the recipe reference as a canonical value."""
        return (self.kind, self.digest, self.config)

    @classmethod
    def from_value(cls, value: Value) -> Recipe:
        """Parse a recipe reference; raises `MalformedError`."""
        fields = Fields(value, "manifest, recipe", 3)
        kind, digest = fields.text("kind", 32, "|".join(RECIPE_KINDS)), fields.digest("digest")
        config: list[tuple[str, bool | int | float | str | None]] = []
        for item in fields.array("config", MAX_CONFIG):
            pair = Fields(item, "manifest, recipe config", 2)
            name, setting = pair.text("name", 64, "[A-Za-z_][A-Za-z0-9_]*"), pair.value()
            if isinstance(setting, (tuple, bytes)) or (isinstance(setting, str) and len(setting) > MAX_CONFIG_TEXT):
                raise MalformedError(f"manifest, recipe config {name}", expected="a short scalar", got=setting)
            config.append((name, setting))
        check_order((name for name, _ in config), "names of a recipe's configuration")
        if kind == "none" and (digest != NO_DIGEST or config):
            raise MalformedError("manifest, recipe of kind none", expected="a digest of zeros, no configuration")
        return cls(kind, digest, tuple(config))


@dataclass(frozen=True)
class Dataset:
    """The dataset: RFC 6962 root over its salted samples, and how many there are.

    Size 0 with the root of the empty tree says that the run does not commit to a dataset: nobody had it at hand when
    the manifest was made, as when snapshots of a finished training are imported.
    """

    root: bytes
    size: int

    @classmethod
    def not_committed(cls) -> Dataset:
        """Return the dataset of a run that commits to none."""
        return cls(merkle.EMPTY_ROOT, 0)

    def value(self) -> Value:
        """Return the dataset as a canonical value."""
        return (self.root, self.size)

    @classmethod
    def from_value(cls, value: Value) -> Dataset:
        """Parse a dataset; raises `MalformedError`."""
        fields = Fields(value, "manifest, dataset", 2)
        dataset = cls(fields.digest("root"), fields.integer("size"))
        if dataset.size == 0 and dataset != cls.not_committed():
            raise MalformedError("manifest, root of no dataset", expected=cls.not_committed().root, got=dataset.root)
        return dataset


@dataclass(frozen=True)
class Optimizer:
    """The optimizer's class name and the SHA-256 of its canonically encoded hyperparameters (a blob of its own)."""

    name: str
    hyperparameters: bytes

    def value(self) -> Value:
        """Return the optimizer as a canonical value."""
        return (self.name, self.hyperparameters)

    @classmethod
    def from_value(cls, value: Value) -> Optimizer:
        """Parse an optimizer; raises `MalformedError`."""
        fields = Fields(value, "manifest, optimizer", 2)
        return cls(fields.text("name", 256), fields.digest("hyperparameters"))


@dataclass(frozen=True)
class Parent:
    """The run and snapshot that this run started from.

    Attributes:
        origin: origin line of the parent's signed root.
        size: leaves under that root.
        root: that root.
        step: step of the snapshot that was inherited.
        state: its state digest.
        inherited: SHA-256 of the canonical list of the inherited tensors' names (a blob of its own).
    """

    origin: str
    size: int
    root: bytes
    step: int
    state: bytes
    inherited: bytes

    def value(self) -> Value:
        """Return the parent as a canonical value."""
        return (self.origin, self.size, self.root, self.step, self.state, self.inherited)

    @classmethod
    def from_value(cls, value: Value) -> Parent:
        """Parse a parent; raises `MalformedError`."""
        fields = Fields(value, "manifest, parent", 6)
        return cls(
            fields.text("origin", MAX_ORIGIN),
            fields.integer("size", 1),
            fields.digest("root"),
            fields.integer("step"),
            fields.digest("state"),
            fields.digest("inherited"),
        )


@dataclass(frozen=True)
class Initial:
    """How snapshot 0 came to be.

    Attributes:
        kind: ``seed`` (rebuilt from the run's seed by the recipe), ``parent`` or ``distribution``.
        state: state digest of snapshot 0.
        parent: the parent run, for kind ``parent`` only.
    """

    kind: str
    state: bytes
    parent: Parent | None = None

    def value(self) -> Value:
        """Return the initial state as a canonical value."""
        return (self.kind, self.state, None if self.parent is None else self.parent.value())

    @classmethod
    def from_value(cls, value: Value) -> Initial:
        """Parse an initial state; raises `MalformedError`."""
        fields = Fields(value, "manifest, initial state", 3)
        kind, state, parent = fields.text("kind", 32, "|".join(INITIAL_KINDS)), fields.digest("state"), fields.value()
        if (kind == "parent") != (parent is not None):
            raise MalformedError("manifest, initial state", expected="a parent exactly for kind parent", got=kind)
        return cls(kind, state, None if parent is None else Parent.from_value(parent))


@dataclass(frozen=True)
class Manifest:
    """Leaf 0 of a run's tree.

    Attributes:
        run: name of the run, as it ends the origin of its signed root.
        recipe: how to rebuild what is trained.
        dataset: what it is trained on.
        optimizer: what trains it.
        seed: 32 bytes from which all randomness is derived.
        sampler: ``seed`` (the order of samples follows from the seed) or ``free``.
        initial: how snapshot 0 came to be.
        environment: environment class in which the first segment was trained.
        fidelity: how snapshots are quantised, see specs/codec.md.
        every: steps from one snapshot to the next, the paper's k.
        not_before: a recent witnessed checkpoint note, or None.
        extensions: later commitments.
    """

    run: str
    recipe: Recipe
    dataset: Dataset
    optimizer: Optimizer
    seed: bytes
    sampler: str
    initial: Initial
    environment: Environment
    fidelity: str
    every: int
    not_before: bytes | None = None
    extensions: Extensions = ()

    TAG = "polstore/manifest/v1"

    def encode(self) -> bytes:
        """Return the leaf's bytes; raises `MalformedError` if they are too many."""
        leaf = canonical.encode(
            (
                self.TAG,
                self.run,
                self.recipe.value(),
                self.dataset.value(),
                self.optimizer.value(),
                self.seed,
                self.sampler,
                self.initial.value(),
                self.environment.value(),
                self.fidelity,
                self.every,
                self.not_before,
                self.extensions,
            )
        )
        if len(leaf) > MAX_LEAF:
            raise MalformedError("manifest is too long", expected=f"at most {MAX_LEAF} bytes", got=f"{len(leaf)} bytes")
        return leaf

    @classmethod
    def parse(cls, leaf: bytes) -> Manifest:
        """Parse a leaf; raises `MalformedError`."""
        fields = Fields(canonical.decode(leaf, limit=MAX_LEAF, what="manifest"), "manifest", 13)
        fields.tag(cls.TAG)
        return cls(
            run=fields.text("run", 64, RUN_NAME),
            recipe=Recipe.from_value(fields.value()),
            dataset=Dataset.from_value(fields.value()),
            optimizer=Optimizer.from_value(fields.value()),
            seed=_seed(fields),
            sampler=fields.text("sampler", 32, "|".join(SAMPLER_KINDS)),
            initial=Initial.from_value(fields.value()),
            environment=Environment.from_value(fields.value()),
            fidelity=fields.text("fidelity", 64, "[a-z0-9-]+"),
            every=fields.integer("every", 1, MAX_EVERY),
            not_before=_optional_binary(fields),
            extensions=parse_extensions(fields.array("extensions", MAX_EXTENSIONS), "manifest"),
        )


def _seed(fields: Fields) -> bytes:
    seed = fields.binary("seed", SEED_SIZE)
    if len(seed) != SEED_SIZE:
        raise MalformedError("manifest, field seed", expected=f"{SEED_SIZE} bytes", got=f"{len(seed)} bytes")
    return seed


def _optional_binary(fields: Fields) -> bytes | None:
    value = fields.value()
    if value is None:
        return None
    if value == b"":
        raise MalformedError("manifest, field not_before", expected="nil or at least one byte", got=value)
    return Fields((value,), "manifest", 1).binary("not_before", MAX_NOT_BEFORE)
