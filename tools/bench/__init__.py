"""Benchmarks: `python -m tools.bench.NAME [--json]` prints figures beside a rival's, as ratios of one run."""
