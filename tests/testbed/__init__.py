"""A cluster of network namespaces on one machine, for kernel tests and the demo.

    namespaces  run a function or a program in a network (and mount) namespace
    host        one machine: its namespaces, held by a small process (`holder`)
    cluster     client, data centre router, nodes, and what connects them
    cni         pods, made by a real chain of CNI plugins
    manifests   the Kubernetes objects of all this, as a folder of YAML
    server, traffic, holding, packets
                programs in the pods, and what a client does to them

Everything is in namespaces of its own and nothing outlives the process that built it, not even after
`kill -9`. So many testbeds can stand side by side, and tests may do to a node what they like.
"""
