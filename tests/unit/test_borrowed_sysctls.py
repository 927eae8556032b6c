"""Sysctls of other people's devices: changed for as long as needed, and then as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from node_helper.kernel import sysctl
from node_helper.kernel.sysctl import BorrowedSysctls, loosen


def rp_filter(device: str) -> str:
    return f"ipv4/conf/{device}/rp_filter"


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The values, by name; what is not in it does not exist."""
    values = {rp_filter("all"): "1", rp_filter("eth0"): "1", rp_filter("cni0"): "0"}

    def write(name: str, value: str) -> None:
        assert name in values
        values[name] = value

    monkeypatch.setattr(sysctl, "read_sysctl", values.get)
    monkeypatch.setattr(sysctl, "write_sysctl", write)
    return values


def test_what_was_borrowed_is_given_back_also_after_a_restart(kernel: dict[str, str], tmp_path: Path) -> None:
    before = dict(kernel)
    assert BorrowedSysctls(tmp_path).borrow(rp_filter("eth0"), "2")
    assert kernel == before | {rp_filter("eth0"): "2"}
    restarted = BorrowedSysctls(tmp_path)
    assert restarted.borrowed() == [rp_filter("eth0")]
    restarted.borrow(rp_filter("eth0"), "2")  # it does not take our own value for what was there before
    restarted.give_back(rp_filter("eth0"))
    assert kernel == before
    assert BorrowedSysctls(tmp_path).borrowed() == []


def test_what_is_as_wanted_is_not_borrowed(kernel: dict[str, str], tmp_path: Path) -> None:
    kernel[rp_filter("eth0")] = "2"
    sysctls = BorrowedSysctls(tmp_path)
    assert sysctls.borrow(rp_filter("eth0"), "2")
    sysctls.give_back(rp_filter("eth0"))
    assert kernel[rp_filter("eth0")] == "2"


def test_what_does_not_exist_cannot_be_borrowed_and_what_is_gone_not_given_back(
    kernel: dict[str, str], tmp_path: Path
) -> None:
    sysctls = BorrowedSysctls(tmp_path)
    assert not sysctls.borrow(rp_filter("none"), "2")
    sysctls.borrow(rp_filter("eth0"), "2")
    del kernel[rp_filter("eth0")]
    sysctls.give_back(rp_filter("eth0"))
    assert sysctls.borrowed() == []


def test_what_is_loosened_is_guarded_from_before_to_after(kernel: dict[str, str], tmp_path: Path) -> None:
    told: list[tuple[set[str], str, str]] = []

    def guard(devices: frozenset[str]) -> None:
        told.append((set(devices), kernel[rp_filter("eth0")], kernel[rp_filter("cni0")]))

    sysctls = BorrowedSysctls(tmp_path)
    loosen(sysctls, frozenset({"eth0", "gone0"}), guard)
    assert told[0] == ({"eth0"}, "1", "0")
    loosen(sysctls, frozenset({"cni0"}), guard)
    assert told[2:] == [({"eth0", "cni0"}, "2", "0"), ({"cni0"}, "1", "2")]
    kernel[rp_filter("all")] = kernel[rp_filter("cni0")] = "2"  # not strict: nothing to loosen or to guard
    loosen(BorrowedSysctls(tmp_path / "other"), frozenset({"cni0"}), guard)
    assert told[-1][0] == set()


@pytest.mark.parametrize("left", ["", "rubbish", "[1]", "7"])
def test_a_file_that_cannot_be_used_is_as_good_as_none(kernel: dict[str, str], tmp_path: Path, left: str) -> None:
    (tmp_path / "sysctls.json").write_text(left)
    assert BorrowedSysctls(tmp_path).borrowed() == []


def test_what_cannot_be_noted_is_borrowed_all_the_same_and_noted_once_it_can_be(
    kernel: dict[str, str], tmp_path: Path
) -> None:
    """As on a full disk; given back is it then, too."""
    before = dict(kernel)
    run_dir = tmp_path / "run"
    run_dir.write_text("in the way")
    sysctls = BorrowedSysctls(run_dir)
    loosen(sysctls, frozenset({"eth0", "cni0"}))
    assert kernel == before | {rp_filter("eth0"): "2", rp_filter("cni0"): "2"}
    assert sysctls.file.trouble == f"{run_dir}/sysctls.json cannot be written: Not a directory"
    loosen(sysctls, frozenset({"eth0"}))
    assert kernel == before | {rp_filter("eth0"): "2"}
    run_dir.unlink()
    run_dir.mkdir()
    sysctls.file.try_again()
    assert sysctls.file.trouble == ""
    assert BorrowedSysctls(run_dir).borrowed() == [rp_filter("eth0")]
    loosen(BorrowedSysctls(run_dir), frozenset())
    assert kernel == before
    assert list(run_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("everywhere", "device", "after"),
    [("0", "0", "0"), ("0", "1", "2"), ("1", "0", "2"), ("1", "1", "2"), ("0", "2", "2"), ("2", "1", "1")],
)
def test_a_device_is_loosened_just_where_it_filters_strictly(
    kernel: dict[str, str], tmp_path: Path, everywhere: str, device: str, after: str
) -> None:
    """The larger of its own value and the host's counts."""
    kernel |= {rp_filter("all"): everywhere, rp_filter("eth0"): device}
    loosen(BorrowedSysctls(tmp_path), frozenset({"eth0"}))
    assert kernel[rp_filter("eth0")] == after
    assert kernel[rp_filter("all")] == everywhere, "never host-wide"


def test_a_device_that_is_no_longer_used_is_as_it_was(kernel: dict[str, str], tmp_path: Path) -> None:
    before = dict(kernel)
    sysctls = BorrowedSysctls(tmp_path)
    loosen(sysctls, frozenset({"eth0", "cni0", "gone0"}))
    assert kernel == before | {rp_filter("eth0"): "2", rp_filter("cni0"): "2"}
    loosen(sysctls, frozenset({"cni0"}))
    assert kernel == before | {rp_filter("cni0"): "2"}
    loosen(sysctls, frozenset())
    assert kernel == before
