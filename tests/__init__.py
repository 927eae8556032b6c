"""Tests: `unit` is pure, `kernel` works on real network namespaces, `vm` boots a stock kernel to run both elsewhere."""
