"""Where Kubernetes objects come from: each source makes the same frozen `model.Snapshot`.

`kubernetes_objects` knows the shapes of Kubernetes objects, for every source. `manifests` reads them from a
folder of YAML files (`documents` parses, `folder_watch` notices changes).
"""
