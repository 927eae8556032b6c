"""A virtual machine with a stock Debian kernel that runs any command of this checkout.

The kernel of the machine at hand may lack GRE or MPLS; Debian's has them, and is what users run. `image`
builds the root folders from Debian's packages and caches them, `machine` boots and stops, `__main__` is
the command: `python -m tests.vm -- COMMAND`.
"""
