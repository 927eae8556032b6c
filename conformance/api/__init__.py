"""The helper against a real API server: kube-apiserver and etcd, built from their Go modules, in a namespace."""
