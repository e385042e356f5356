"""Benchmarks: every number the issues demand, measured against a stated peer in the same run."""
