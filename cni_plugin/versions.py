"""The versions of the CNI specification that the plugin speaks, and its answer to the verb VERSION.

Runtimes ask for it at each start and at each look at a network: it imports nothing, not even JSON.
"""

SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Oldest first."""
LATEST = SUPPORTED[-1]
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""The version that brought a verb; the others have always been there."""


def answer() -> str:
    """What VERSION prints; nothing is read for it, since a runtime may leave stdin open and silent."""
    listed = ",".join([f'"{version}"' for version in SUPPORTED])
    return f'{{"cniVersion":"{LATEST}","supportedVersions":[{listed}]}}'
