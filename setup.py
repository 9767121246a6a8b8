"""Compiles the codec's inner loops; where there is no C compiler, numpy and torch do the same, more slowly."""

import sys
import sysconfig

from setuptools import Extension, setup

# No option here may change a number: polstore.codec commits to bits. The two that begin with -fno- only say that nobody
# asks for the processor's exception flags or for errno, without which loops over float32 are not vectorised.
GNU = ["-O3", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-Wall", "-Wextra"]
MICROSOFT = ["/O2", "/fp:precise"]

LOOPS = Extension(
    "polstore.codec._native",
    ["polstore/codec/_native.c"],
    extra_compile_args=MICROSOFT if sys.platform == "win32" else GNU,
    py_limited_api=True,
    optional=True,
)

if sysconfig.get_config_var("Py_GIL_DISABLED"):  # a Python without the lock has no stable ABI that these could use
    setup()
else:
    setup(ext_modules=[LOOPS], options={"bdist_wheel": {"py_limited_api": "cp311"}})
