"""Build of the native core. Everything else about the package is in pyproject.toml.

Three switches, read from the environment:
    FASTFEAT_DEBUG=1               checks on, no optimisation, assertions live
    FASTFEAT_SANITIZE=address,...  the named sanitizers (`address`, `undefined`, `thread`)
    FASTFEAT_COVERAGE=1            line tracing for coverage of the Cython sources
"""

import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("FASTFEAT_DEBUG", "") not in ("", "0")
SANITIZE = os.environ.get("FASTFEAT_SANITIZE", "")
COVERAGE = os.environ.get("FASTFEAT_COVERAGE", "") not in ("", "0")

# Why not -march=native: a wheel built here must run on any x86-64 or arm64 machine.
compile_args = ["-std=c11", "-Wall", "-Wno-unused-function", "-fno-strict-aliasing"]
compile_args += ["-O0", "-g", "-UNDEBUG", "-DFASTFEAT_DEBUG=1"] if DEBUG else ["-O3", "-g1", "-DNDEBUG"]
link_args = []
if SANITIZE:
    compile_args += [f"-fsanitize={SANITIZE}", "-g", "-fno-omit-frame-pointer"]
    link_args += [f"-fsanitize={SANITIZE}"]

macros = [("CYTHON_TRACE_NOGIL", "1")] if COVERAGE else []
sources = sorted(Path("fastfeat/_core").glob("*.pyx"))
extensions = [
    Extension(
        ".".join(source.with_suffix("").parts),
        [str(source)],
        include_dirs=["fastfeat/_core", numpy.get_include()],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=[*macros, ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    )
    for source in sources
]

setup(
    ext_modules=cythonize(
        extensions,
        build_dir="build/debug" if DEBUG else "build/release",
        nthreads=os.cpu_count() or 1,
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
            "freethreading_compatible": False,
            "linetrace": COVERAGE,
        },
    ),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
