"""Compiles the codec's inner loops; where there is no C compiler, numpy and torch do the same, several times slower."""

import sys

from setuptools import Extension, setup

# No option here may change a number: polstore.codec commits to bits. The two that begin with -fno- only say that nobody
# asks for the processor's exception flags or for errno, without which loops over float32 are not vectorised.
GNU = ["-O3", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-Wall", "-Wextra"]
MICROSOFT = ["/O2", "/fp:precise"]

setup(
    ext_modules=[
        Extension(
            "polstore.codec._native",
            ["polstore/codec/_native.c"],
            extra_compile_args=MICROSOFT if sys.platform == "win32" else GNU,
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
