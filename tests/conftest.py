"""Profiles of Hypothesis: `make test` uses `ci` (500 examples, the same ones every time); HYPOTHESIS_PROFILE=nightly tries
20,000 new ones, HYPOTHESIS_PROFILE=quick 50."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", max_examples=500, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("nightly", max_examples=20_000, deadline=None, print_blob=True)
settings.register_profile("quick", max_examples=50, deadline=None, derandomize=True, print_blob=True)
os.environ.setdefault("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(os.environ["HYPOTHESIS_PROFILE"])
