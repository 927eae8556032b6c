"""Tests without root, without namespaces and without order: they run on all cores at once."""
