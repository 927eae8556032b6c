"""Reads and writes the kernel's state: the edge at which plans take effect.

`router` owns the router's namespace, `host` what is ours in the host's own, `facts` reads what planning has
to know; `commands` is the one place that starts programs, `sysctl` the one that changes sysctls and knows
what they were before.
"""
