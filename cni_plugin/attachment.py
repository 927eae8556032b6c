"""Attachment records: which pods of this node have passed through the plugin, one small file for each.

The plugin writes a record before it asks for tunnels, says in it what it is about to put into the pod
before it does, and marks it ready at the end. So whoever finds a pod at which somebody was interrupted
knows what may be in it. The helper follows the folder and reads from it where the network namespace of a
running pod is and what the pod has. A file is replaced whole by rename and never edited, so a reader sees
the old record or the new one. No fsync: the folder is in a tmpfs, like the namespaces it names, and both
are gone after a reboot.
"""

from __future__ import annotations

import posix

from cni_plugin import trust, tunnel, wire
from cni_plugin.record import Record
from cni_plugin.tunnel import PodTunnels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ADDING = "adding"
READY = "ready"
FORMAT = 1


class AttachmentError(ValueError):
    """A file that is no attachment record, or not of a format known here."""


class NewerRecord(AttachmentError):
    """A record that a newer version wrote: not ours to read, to change or to remove."""


class Attachment(Record):
    """One interface of one pod."""

    network: str
    container: str
    """The runtime's id of the sandbox."""
    interface: str
    """The interface's name inside the pod."""
    netns: str
    """Path of the pod's network namespace."""
    inode: int
    """The inode behind `netns` when the record was written: another inode there is another namespace."""
    namespace: str = ""
    """Kubernetes namespace, name and UID of the pod; empty without Kubernetes."""
    name: str = ""
    uid: str = ""
    ips: tuple[str, ...] = ()
    """The pod's own addresses from the chain's result, without prefix lengths."""
    state: str = ADDING
    """`adding` while ADD runs, then `ready`."""
    standalone: bool = False
    """The tunnels come from the chain entry or the pod's annotations: not the helper's to change."""
    tunnels: PodTunnels = PodTunnels()
    """What the pod was last given; in state `adding` all that may be in it."""

    @property
    def file_name(self) -> str:
        """Unambiguous: neither network names, container ids nor interface names may contain a colon."""
        return file_name(self.network, self.container, self.interface)


def file_name(network: str, container: str, interface: str) -> str:
    """The record's name within the folder."""
    return f"{network}:{container}:{interface}"


def owner(name: str) -> tuple[str, str, str] | None:
    """Network, container and interface to which a file of the folder belongs, finished or not; None: no such file."""
    if name.startswith("."):
        name = name[1:].rpartition(".")[0]
    parts = tuple(name.split(":"))
    return parts if len(parts) == 3 and all(parts) else None


def directory(run_dir: str) -> str:
    """The folder of the records; names that begin with a dot in it are not finished."""
    return f"{run_dir}/attachments"


def ensure_directory(run_dir: str) -> str:
    """Like `directory`, and makes it where it is missing; raises OSError."""
    path = directory(run_dir)
    try:
        posix.mkdir(path, 0o700)
    except FileExistsError:
        return path
    except FileNotFoundError:
        _make_parents(run_dir, 0o700)
        try:
            posix.mkdir(path, 0o700)
        except FileExistsError:
            return path  # another ADD was faster
    return path


def _make_parents(path: str, mode: int = 0o755) -> None:
    try:
        posix.mkdir(path, mode)
    except FileExistsError:
        return
    except FileNotFoundError:
        parent = path.rstrip("/").rpartition("/")[0]
        if not parent:
            raise
        _make_parents(parent)
        _make_parents(path, mode)


def check_room(run_dir: str) -> None:
    """Raises OSError where no record can be written; nothing is left of the attempt, whatever happens to it."""
    folder = ensure_directory(run_dir)
    try:
        descriptor = posix.open(folder, posix.O_WRONLY | posix.O_TMPFILE | posix.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != 95:  # EOPNOTSUPP: a file system without files that have no name
            raise
        if not posix.access(folder, posix.W_OK):
            raise PermissionError(13, "not writable", folder) from None
        return
    try:
        posix.write(descriptor, bytes(4096))
    finally:
        posix.close(descriptor)


def write(run_dir: str, attachment: Attachment) -> None:
    """Puts the record in place, whole; raises OSError, or WireError for values no record can hold."""
    body = wire.pack(to_plain(attachment))
    folder = ensure_directory(run_dir)
    # The process id keeps apart the plugin and the helper, should both write this record.
    temporary = f"{folder}/.{attachment.file_name}.{posix.getpid()}"
    try:
        descriptor = posix.open(temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, 0o600)
        try:
            while body:
                body = body[posix.write(descriptor, body) :]
        finally:
            posix.close(descriptor)
        posix.rename(temporary, f"{folder}/{attachment.file_name}")
    except OSError:
        try:
            _unlink(temporary)
        except OSError:
            pass  # the first failure is the one to be told
        raise


def read(run_dir: str, network: str, container: str, interface: str) -> Attachment | None:
    """The record, None where there is none; raises AttachmentError for rubbish, OSError."""
    return _read(directory(run_dir), file_name(network, container, interface))


def files(run_dir: str) -> list[str]:
    """The names of all files in the folder, also unfinished ones, in order; raises OSError."""
    try:
        return sorted(posix.listdir(directory(run_dir)))
    except FileNotFoundError:
        return []


def read_all(run_dir: str) -> tuple[list[Attachment], list[str]]:
    """Every record, in the order of their file names, and one sentence for each file that is none."""
    found: list[Attachment] = []
    troubles: list[str] = []
    folder = directory(run_dir)
    try:
        names = files(run_dir)
    except OSError as error:
        return found, [f"{folder}: {error.strerror}"]
    for name in names:
        if name.startswith("."):
            continue
        try:
            attachment = _read(folder, name)
        except AttachmentError as error:
            troubles.append(str(error))
        except OSError as error:
            troubles.append(f"{folder}/{name}: {error.strerror}")
        else:
            if attachment is not None:
                found.append(attachment)
    return found, troubles


def remove(run_dir: str, network: str, container: str, interface: str) -> bool:
    """Whether there was such a record; there is none any more, nor the beginning of one. Raises OSError."""
    there = _unlink(f"{directory(run_dir)}/{file_name(network, container, interface)}")
    remove_unfinished(run_dir, network, container, interface)
    return there


def remove_unfinished(run_dir: str, network: str, container: str, interface: str) -> None:
    """Removes what a writer of this record left behind that was killed before its rename; raises OSError."""
    begins = f".{file_name(network, container, interface)}."
    for name in files(run_dir):
        if name.startswith(begins) and name[len(begins) :].isdigit():
            _unlink(f"{directory(run_dir)}/{name}")


def _unlink(path: str) -> bool:
    try:
        posix.unlink(path)
    except FileNotFoundError:
        return False
    return True


def _read(folder: str, name: str) -> Attachment | None:
    path = f"{folder}/{name}"
    try:
        # A record leads the helper into a network namespace: whoever is not root has no say in that.
        body = trust.read_file(path, wire.MESSAGE_LIMIT)
    except FileNotFoundError:
        return None
    try:
        attachment = from_plain(wire.unpack(body))
    except NewerRecord as error:
        raise NewerRecord(f"{path} {error}") from None
    except ValueError as error:
        raise AttachmentError(f"{path} is no attachment record: {error}") from None
    if attachment.file_name != name:
        raise AttachmentError(f"{path} is the record of {attachment.file_name}")
    return attachment


_TEXTS = ("network", "container", "interface", "netns", "namespace", "name", "uid", "state")


def to_plain(attachment: Attachment) -> dict[str, Any]:
    """The record as it lies in the file."""
    plain: dict[str, Any] = {"v": FORMAT, **attachment.__dict__}
    plain["ips"] = list(attachment.ips)
    plain["tunnels"] = tunnel.to_plain(attachment.tunnels)
    return plain


def from_plain(plain: Any) -> Attachment:
    """Inverse of `to_plain`; raises NewerRecord, and ValueError on anything of another shape."""
    version = plain.get("v") if isinstance(plain, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise NewerRecord(
            f"was written by a newer version of service-tunnel (format {version}, {FORMAT} is known here): "
            "go back to that version"
        )
    if version != FORMAT:
        raise ValueError(f"not a record of format {FORMAT}")
    for key in _TEXTS:
        if not isinstance(plain.get(key), str):
            raise ValueError(f"{key} is not text")
    ips, inode = plain.get("ips"), plain.get("inode")
    if not isinstance(ips, list) or not all(isinstance(ip, str) for ip in ips):
        raise ValueError("ips is not a list of texts")
    if not isinstance(inode, int):
        raise ValueError("inode is no integer")
    return Attachment(
        **{key: plain[key] for key in _TEXTS},
        ips=tuple(ips),
        inode=inode,
        standalone=plain.get("standalone") is True,
        tunnels=tunnel.from_plain(plain.get("tunnels")),
    )
