"""An independent reading of specs/: written from the pages alone, with nothing of polstore's.

The standard library and `cryptography`'s Ed25519 are all it uses. It favours the obvious over the fast. One module per
format, each with ``check(case)``, which raises `RefusedError` for what the specification refuses and
`MismatchError` where an output is not as the case states it. `tools.check_vectors` runs it over the vectors.
"""
