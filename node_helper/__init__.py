"""The node helper: a daemon that keeps a node's router, routes and running pods as the Services want them.

The path of a VIP through this package, each step a module or package of its name:

    sources  -> model.Snapshot -> services (which Service has which VIP) -> buckets -> plan -> kernel

`sources` read Kubernetes objects, `plan` computes without effects what the kernel is to hold and what has
to change, `kernel` reads and writes it. `daemon` runs the cycle, `asks` serves the plugin, `cli` is the
face to the operator.
"""
