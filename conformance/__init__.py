"""The CNI contract, held against built plugins from outside, and our plugin among real peers.

    contract        what the CNI specification demands of a chained plugin, as a table of cases: any plugin, any fault
    profiles        how to examine one plugin: its binary, its keys, and where it differs from the specification
    peers           the reference plugins and libcni's cnitool, built from their Go modules at pinned versions
    test_contract   each case of the contract with each profile
    test_chains     our plugin in chains of reference plugins, driven by libcni

`pytest conformance` runs all of it, `pytest conformance --plugin PATH` only the contract, with another plugin.
docs/conformance.md has the rest.
"""
