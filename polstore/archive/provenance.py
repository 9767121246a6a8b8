"""Where an imported run came from, as its manifest says: the extension ``polstore/imported``.

Implements that extension of specs/run-records.md. Nothing in it is checked: it is a declaration like the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.errors import DamagedError, MalformedError
from polstore.wire import canonical
from polstore.wire.fields import Fields

if TYPE_CHECKING:
    from polstore.wire.extensions import Extensions

__all__ = ["Provenance"]

MAX_BYTES = 256  # of the extension
MAX_LAYOUT = 32  # characters


@dataclass(frozen=True)
class Provenance:
    """What the files of an imported run were taken for, and the step of the training that is the run's step 0."""

    layout: str
    first_step: int

    NAME = "polstore/imported"

    def extensions(self) -> Extensions:
        """Return the extensions of the manifest of such a run."""
        return ((self.NAME, canonical.encode((self.layout, self.first_step))),)

    @classmethod
    def find(cls, extensions: Extensions) -> Provenance | None:
        """Return what a manifest's extensions say, or None for a run that was recorded; raises `DamagedError`."""
        data = dict(extensions).get(cls.NAME)
        if data is None:
            return None
        try:
            fields = Fields(canonical.decode(data, limit=MAX_BYTES, what=cls.NAME), cls.NAME, 2)
            return cls(fields.text("layout", MAX_LAYOUT, "[a-z]+"), fields.integer("first_step"))
        except MalformedError as error:
            raise DamagedError(f"extension of the manifest: {error}") from error
