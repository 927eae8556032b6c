"""The fault matrix: faults against loads, in each mode, over IPv4 and IPv6; what was open, and what was lost.

`python -m tests.faults` (`make faults`) runs it; docs/faults.md says how to read it, and has a run of it.
"""
