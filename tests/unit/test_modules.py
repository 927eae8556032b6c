"""Modules are asked for where they are missing, and not again and again where they cannot be had."""

from __future__ import annotations

import pytest
from pytest_subprocess import FakeProcess

from node_helper.kernel import modules
from node_helper.kernel.modules import MplsModules

MODPROBE = ["modprobe", "-a", "mpls_router", "mpls_iptunnel"]


def test_mpls_is_asked_for_once_between_full_comparisons(fp: FakeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "read_sysctl", lambda _: None)
    fp.register(MODPROBE, returncode=1, stderr="modprobe: FATAL: Module mpls_router not found", occurrences=9)
    mpls = MplsModules()
    mpls.load(full=False)  # the first Service of mode mpls came with a change
    for _ in range(100):
        mpls.load(full=False)
    assert fp.call_count(MODPROBE) == 1
    mpls.load(full=True)
    assert fp.call_count(MODPROBE) == 2


def test_mpls_that_is_there_is_not_asked_for(fp: FakeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "read_sysctl", lambda _: "1048575")
    MplsModules().load(full=True)
    assert not fp.calls
