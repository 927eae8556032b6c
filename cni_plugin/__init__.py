"""The chained CNI plugin: everything that runs inside a pod's network namespace.

This package is frozen into a binary that the container runtime starts for every pod of a node, so what
it imports is paid for at each start. It therefore uses built-in and C modules, and a few small ones of
its own where the standard library's would cost more than the work (`record`, `jsontext`, `wire`,
`netlink`). It never imports `node_helper`.
"""

__version__ = "0.1.0"
