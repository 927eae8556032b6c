"""A Kubernetes cluster of real programs on one machine, with the project installed into it as a user would.

    client ── router, with the control plane ──┬─ node1 (ingress)   containerd 2, kube-proxy mode iptables
                                               ├─ node2 (ingress)   containerd 2, kube-proxy mode nftables
                                               └─ node3             CRI-O or containerd 1.6, kube-proxy mode iptables

Client, router and links are the testbed's; a node is a `machine.Machine`: namespaces of all kinds, cgroups and a file
system of its own, in which kubelet, kube-proxy and a container runtime run as on a machine that they have for
themselves. No registry of images is asked: `images` makes what is needed.

`python -m conformance.cluster` builds one and leaves it standing as long as it runs, to look around in.
"""
