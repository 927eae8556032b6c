"""`make bench`: how fast and how large things are, told as ratios to a peer that was measured in the same run.

A benchmark is never a test: nothing here fails because it was slow. `tests/kernel/test_bench.py` sees to it that
each still runs. docs/benchmarks.md says what is measured how.
"""
