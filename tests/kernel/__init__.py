"""Tests against the real kernel, as root, in network namespaces of their own."""
