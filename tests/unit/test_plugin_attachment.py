"""Attachment records: what is written is read, whatever else lies in the folder is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin import attachment, wire
from cni_plugin.attachment import Attachment, AttachmentError
from cni_plugin.tunnel import PodTunnels, Remap, Tunnel

WHOLE = Attachment(
    network="pods",
    container="0123abc",
    interface="eth0",
    netns="/run/netns/pod",
    inode=4026532123,
    namespace="shop",
    name="web-1",
    uid="u-1",
    ips=("10.0.0.2", "2001:db8::2"),
    state=attachment.READY,
    standalone=True,
    tunnels=PodTunnels((Tunnel(("198.51.100.7",), "gre", (Remap("tcp", 80, 8080),)),), ("10.0.0.1",)),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    attachment.write(str(tmp_path / "run" / "deep"), WHOLE)
    assert attachment.read(str(tmp_path / "run" / "deep"), "pods", "0123abc", "eth0") == WHOLE
    assert attachment.read_all(str(tmp_path / "run" / "deep")) == ([WHOLE], [])


def test_the_file_is_named_after_the_attachment_and_any_msgpack_reader_reads_it(tmp_path: Path) -> None:
    attachment.write(str(tmp_path), WHOLE)
    plain = msgpack.unpackb((tmp_path / "attachments" / "pods:0123abc:eth0").read_bytes())
    assert plain["v"] == 1
    assert plain["tunnels"]["tunnels"][0]["vips"] == ["198.51.100.7"]
    assert plain["ips"] == ["10.0.0.2", "2001:db8::2"]


def test_a_record_is_replaced_whole_and_leaves_no_other_file(tmp_path: Path) -> None:
    attachment.write(str(tmp_path), WHOLE)
    attachment.write(str(tmp_path), WHOLE.replace(state=attachment.ADDING, tunnels=PodTunnels()))
    assert [path.name for path in (tmp_path / "attachments").iterdir()] == ["pods:0123abc:eth0"]
    found = attachment.read(str(tmp_path), "pods", "0123abc", "eth0")
    assert found is not None
    assert found.state == attachment.ADDING


def test_an_absent_record_reads_as_none_and_is_removed_without_complaint(tmp_path: Path) -> None:
    assert attachment.read(str(tmp_path), "pods", "0123abc", "eth0") is None
    assert attachment.read_all(str(tmp_path)) == ([], [])
    assert attachment.remove(str(tmp_path), "pods", "0123abc", "eth0") is False


def test_a_removed_record_is_gone_and_its_neighbours_stay(tmp_path: Path) -> None:
    other = WHOLE.replace(interface="net1")
    attachment.write(str(tmp_path), WHOLE)
    attachment.write(str(tmp_path), other)
    assert attachment.remove(str(tmp_path), "pods", "0123abc", "eth0") is True
    assert attachment.read_all(str(tmp_path)) == ([other], [])


def corrupt(**changes: Any) -> bytes:
    packed: bytes = msgpack.packb(attachment.to_plain(WHOLE) | changes)
    return packed


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="an empty file"),
        pytest.param(b"rubbish", id="rubbish"),
        pytest.param(msgpack.packb([1, 2]), id="no map"),
        pytest.param(corrupt(v=99), id="a newer format"),
        pytest.param(corrupt(netns=5), id="a wrong type"),
        pytest.param(corrupt(ips="10.0.0.2"), id="ips as text"),
        pytest.param(corrupt(inode="1"), id="inode as text"),
        pytest.param(corrupt(tunnels={"tunnels": [{"vips": [], "mode": "carrier-pigeon", "remaps": []}]}), id="mode"),
        pytest.param(corrupt(tunnels=None), id="no tunnels"),
        pytest.param(corrupt(container="other"), id="another attachment's record"),
    ],
)
def test_a_corrupt_record_is_named_and_the_others_are_read_all_the_same(tmp_path: Path, body: bytes) -> None:
    attachment.write(str(tmp_path), WHOLE)
    (tmp_path / "attachments" / "pods:bad:eth0").write_bytes(body)
    found, troubles = attachment.read_all(str(tmp_path))
    assert found == [WHOLE]
    assert len(troubles) == 1
    assert "pods:bad:eth0" in troubles[0]
    with pytest.raises(AttachmentError, match="pods:bad:eth0"):
        attachment.read(str(tmp_path), "pods", "bad", "eth0")


def test_unfinished_files_and_folders_are_no_records(tmp_path: Path) -> None:
    attachment.write(str(tmp_path), WHOLE)
    (tmp_path / "attachments" / ".pods:0123abc:eth0.99").write_bytes(b"half")
    (tmp_path / "attachments" / "folder").mkdir()
    found, troubles = attachment.read_all(str(tmp_path))
    assert found == [WHOLE]
    assert len(troubles) == 1


def test_a_folder_that_cannot_be_made_raises_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        attachment.write(str(tmp_path / "file" / "run"), WHOLE)


# ---- who else could have a hand in it ----------------------------------------------------------------------------


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attachment.ensure_directory(str(tmp_path))
    precious = tmp_path / "precious"
    precious.write_text("kept")
    monkeypatch.setattr("cni_plugin.attachment.posix.urandom", lambda size: bytes(size))
    (tmp_path / "attachments" / ".pods:0123abc:eth0.0").symlink_to(precious)
    with pytest.raises(FileExistsError):
        attachment.write(str(tmp_path), WHOLE)
    assert precious.read_text() == "kept"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_to_which_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    folder = Path(attachment.ensure_directory(str(tmp_path)))
    folder.chmod(mode)
    with pytest.raises(PermissionError, match="others than root"):
        attachment.write(str(tmp_path), WHOLE)
    folder.chmod(0o755)
    attachment.write(str(tmp_path), WHOLE)


def test_a_strangers_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attachment.ensure_directory(str(tmp_path))
    monkeypatch.setattr("cni_plugin.trust.is_trusted", lambda uid: False)
    with pytest.raises(PermissionError, match="belongs to uid"):
        attachment.write(str(tmp_path), WHOLE)


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "attachments"
    path.symlink_to(tmp_path / "elsewhere") if kind == "link" else path.touch()
    with pytest.raises(NotADirectoryError):
        attachment.write(str(tmp_path), WHOLE)
    assert list((tmp_path / "elsewhere").iterdir()) == []


# ---- in the place of a record that is known ------------------------------------------------------------------------

CHANGED = WHOLE.replace(tunnels=PodTunnels())


def test_a_record_is_replaced_in_one_step_where_it_is_still_there(tmp_path: Path) -> None:
    attachment.write(str(tmp_path), WHOLE)
    assert attachment.replace(str(tmp_path), WHOLE, CHANGED)
    assert attachment.read_all(str(tmp_path)) == ([CHANGED], [])
    assert len(attachment.files(str(tmp_path))) == 1


def test_a_record_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    assert not attachment.replace(str(tmp_path), WHOLE, CHANGED)
    assert attachment.files(str(tmp_path)) == []


@pytest.mark.parametrize("body", [None, b"rubbish", corrupt(v=99)], ids=["another", "rubbish", "a newer version's"])
def test_a_record_that_is_another_by_now_stays(tmp_path: Path, body: bytes | None) -> None:
    attachment.write(str(tmp_path), WHOLE.replace(state=attachment.ADDING))
    file = tmp_path / "attachments" / WHOLE.file_name
    if body is not None:
        file.write_bytes(body)
    before = file.read_bytes()
    assert not attachment.replace(str(tmp_path), WHOLE, CHANGED)
    assert file.read_bytes() == before
    assert attachment.files(str(tmp_path)) == [WHOLE.file_name]


@given(st.binary(max_size=300))
def test_any_body_is_a_record_or_a_value_error(body: bytes) -> None:
    try:
        attachment.from_plain(wire.unpack(body))
    except ValueError:
        return
