"""Benchmarks: `python -m tests.bench.NAME --json FILE`. Each prints what it measured and what it had to reach."""
