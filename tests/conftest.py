"""How hard Hypothesis looks: FASTFEAT_HYPOTHESIS=long is the campaign of `make test-long`, all else the quick run."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Time is driven in these tests and the machine may be busy: how long one example takes says nothing.
QUICK = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile("quick", QUICK)
settings.register_profile("long", QUICK, max_examples=2_000, stateful_step_count=50)
settings.load_profile("long" if os.environ.get("FASTFEAT_HYPOTHESIS") == "long" else "quick")
