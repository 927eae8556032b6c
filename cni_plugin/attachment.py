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
ENDING = "ending"
FORMAT = 1


_FILE_TYPE, _FOLDER = 0o170000, 0o040000  # S_IFMT, S_IFDIR
_OTHERS_WRITE = 0o022
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE, AT_FDCWD


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
    """`adding` while ADD runs, then `ready`; `ending` from when DEL or GC takes tunnels out.

    In the first and the last the pod is the plugin's alone.
    """
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
    """Like `directory`, and makes it where it is missing; raises OSError.

    PermissionError, in words, for one in which others than root could put, take or exchange records.
    """
    path = directory(run_dir)
    try:
        posix.mkdir(path, 0o700)
    except FileExistsError:
        return _root_only(path)
    except FileNotFoundError:
        _make_parents(run_dir, 0o700)
        try:
            posix.mkdir(path, 0o700)
        except FileExistsError:
            return _root_only(path)  # another ADD was faster
    return path


def _root_only(path: str) -> str:
    found = posix.lstat(path)
    if found.st_mode & _FILE_TYPE != _FOLDER:
        raise NotADirectoryError(20, "no folder, or a link to one", path)
    if not trust.is_trusted(found.st_uid):
        raise PermissionError(1, f"belongs to uid {found.st_uid}, not to root", path)
    if found.st_mode & _OTHERS_WRITE:
        raise PermissionError(1, "others than root can write to it: chmod it to 0700", path)
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
    temporary = _write_beside(run_dir, attachment)
    try:
        posix.rename(temporary, f"{directory(run_dir)}/{attachment.file_name}")
    except OSError:
        _discard(temporary)
        raise


def replace(run_dir: str, old: Attachment, new: Attachment) -> bool:
    """Puts `new` in the place of `old`, and False where that is not there any more, or another record is.

    For the helper: a DEL or a new ADD that came in between had the last word, and a record that is gone stays so.
    Raises as `write` does.
    """
    path = f"{directory(run_dir)}/{new.file_name}"
    temporary = _write_beside(run_dir, new)
    try:
        # One system call that fails where there is no record, and shows what it took away.
        _exchange(temporary, path)
        if _is(temporary, old):
            return True
        _exchange(temporary, path)
    except FileNotFoundError:
        return False
    finally:
        _discard(temporary)
    return False


def _is(path: str, attachment: Attachment) -> bool:
    try:
        return from_plain(wire.unpack(trust.read_file(path, wire.MESSAGE_LIMIT))) == attachment
    except ValueError:
        return False  # rubbish, or a newer version's


def _exchange(one: str, other: str) -> None:
    """Two files change places (renameat2, which `posix` does not have); raises OSError."""
    from _ctypes import get_errno

    from cni_plugin.libc import function

    if function("renameat2")(_HERE, one.encode(), _HERE, other.encode(), _EXCHANGE) != 0:
        code = get_errno()
        raise OSError(code, posix.strerror(code), other)


def _write_beside(run_dir: str, attachment: Attachment) -> str:
    """The record in a new file of its folder whose name nobody could guess and nobody else uses; its path."""
    body = wire.pack(to_plain(attachment))
    folder = ensure_directory(run_dir)
    temporary = f"{folder}/.{attachment.file_name}.{int.from_bytes(posix.urandom(8), 'big')}"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
    descriptor = posix.open(temporary, flags, 0o600)
    try:
        try:
            while body:
                body = body[posix.write(descriptor, body) :]
        finally:
            posix.close(descriptor)
    except OSError:
        _discard(temporary)
        raise
    return temporary


def _discard(path: str) -> None:
    """Whatever led here is what is to be told; what stays is swept up by `remove_unfinished`."""
    try:
        _unlink(path)
    except OSError:
        pass


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
