"""What the runtime says on stdin: the chain entry with what libcni adds to it, as a frozen `NetConf`.

Three steps, so that an error can always carry the configuration's own cniVersion: `decode` (JSON),
`version_of` (is that version spoken), `read` (has it this verb; the keys and their types). Every wrong
key is named at once. DEL is lenient: after an ADD that failed over a wrong key the runtime calls DEL with
the same configuration, and a DEL that fails keeps the pod from ever going away.
"""

from __future__ import annotations

from cni_plugin import jsontext
from cni_plugin.environment import is_identifier
from cni_plugin.errors import ConfigInvalid, Undecodable, VersionUnsupported
from cni_plugin.record import Record
from cni_plugin.versions import SINCE, SUPPORTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RETRY_IF_TUNNELLED = "retry-if-tunnelled"
RETRY = "retry"
PASS = "pass"  # noqa: S105 - a policy, no password
WHEN_AWAY = (RETRY_IF_TUNNELLED, RETRY, PASS)
LOG_LEVELS = ("debug", "info", "warning", "error")

ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
"""The capability by which the runtime passes the pod's annotations."""
VIPS_ANNOTATION = "cmd.nu/tunnel"
MODE_ANNOTATION = "cmd.nu/tunnel-mode"

_ADDRESS = frozenset("0123456789abcdefABCDEF.:/")  # whether it is one the kernel says; here, that it is no odd text


class ValidAttachment(Record):
    """One attachment that GC has to leave alone."""

    container: str
    interface: str


class NetConf(Record):
    """The chain entry; defaults are those of the contract."""

    cni_version: str
    name: str = ""
    """The network's name."""
    helper_socket: str = "/run/service-tunnel/helper.sock"
    run_dir: str = "/run/service-tunnel"
    """Attachment records: what names a network namespace, gone after a reboot as these are."""
    state_dir: str = "/var/lib/service-tunnel"
    when_helper_is_away: str = RETRY_IF_TUNNELLED
    helper_wait: float = 10.0
    """Seconds."""
    exempt_namespaces: tuple[str, ...] = ("kube-system", "service-tunnel")
    """Those of what brings a cluster up, the helper's own among them: nothing is to lock itself out."""
    tunnels: tuple[dict[str, Any], ...] = ()
    """Standalone tunnels as written; `cni_plugin.standalone` reads them."""
    log_level: str = "info"
    log_file: str = "/var/log/service-tunnel.log"
    """Empty: no log."""
    pod_annotations: dict[str, str] = {}  # noqa: RUF012 - a Record's default is never changed
    prev_result: dict[str, Any] | None = None
    """The result of the plugin before this one, as it came; None at DEL after a failed ADD."""
    valid_attachments: tuple[ValidAttachment, ...] | None = None
    """GC only; None when the runtime did not say."""
    problems: tuple[str, ...] = ()
    """What was wrong and has its default instead; empty for every verb but DEL."""


def decode(raw: bytes) -> dict[str, Any]:
    """The configuration as plain values; raises Undecodable (code 6)."""
    try:
        plain = jsontext.loads(raw)
    except jsontext.JsonError as error:
        raise Undecodable("the network configuration on stdin is not JSON", str(error)) from None
    if not isinstance(plain, dict):
        raise Undecodable(f"the network configuration on stdin is {_kind(plain)}, not an object")
    return plain


def version_of(plain: dict[str, Any]) -> str:
    """The configuration's cniVersion; raises VersionUnsupported (code 1), ConfigInvalid when it is no text."""
    # Absent means 0.1.0, which did not have the key.
    version = plain.get("cniVersion") or SUPPORTED[0]
    if not isinstance(version, str):
        raise ConfigInvalid(f"cniVersion is {_kind(version)}, not a string")
    if version not in SUPPORTED:
        raise VersionUnsupported(f"cniVersion {version!r} is not supported", f"supported: {', '.join(SUPPORTED)}")
    return version


def read(plain: dict[str, Any], version: str, command: str) -> NetConf:
    """The keys of the configuration; raises ConfigInvalid (code 7) naming every key that is wrong.

    Raises VersionUnsupported (code 1) when `version` did not yet have the verb `command`.
    For DEL wrong keys have their defaults and are listed in `problems` instead.
    """
    since = SINCE.get(command, SUPPORTED[0])
    if SUPPORTED.index(version) < SUPPORTED.index(since):
        raise VersionUnsupported(f"cniVersion {version} has no {command}, which came with {since}")
    reader = _Reader(plain)
    conf = NetConf(
        version,
        **reader.field("name", "name", _network_name),
        **reader.field("helperSocket", "helper_socket", _path),
        **reader.field("runDir", "run_dir", _path),
        **reader.field("stateDir", "state_dir", _path),
        **reader.field("whenHelperIsAway", "when_helper_is_away", _one_of(WHEN_AWAY)),
        **reader.field("helperWait", "helper_wait", _seconds),
        **reader.field("exemptNamespaces", "exempt_namespaces", _texts),
        **reader.field("tunnels", "tunnels", _objects),
        **reader.field("log.level", "log_level", _one_of(LOG_LEVELS)),
        **reader.field("log.file", "log_file", _path_or_none),
        **reader.field(("runtimeConfig", ANNOTATIONS), "pod_annotations", _annotations),
        **reader.field("prevResult", "prev_result", _object),
        **(_valid_attachments(reader) if command == "GC" else {}),
    )
    if not conf.name and command != "STATUS":
        reader.problems.append("name: the network's name is missing")
    if reader.problems and command != "DEL":
        raise ConfigInvalid("the network configuration is wrong: " + "; ".join(reader.problems))
    return conf.replace(problems=tuple(reader.problems)) if reader.problems else conf


def of_the_log(plain: dict[str, Any]) -> NetConf:
    """What is right of the keys that a line of the log needs, where the rest of the configuration is wrong."""
    reader = _Reader(plain)
    return NetConf(
        "",
        **reader.field("name", "name", _network_name),
        **reader.field("log.level", "log_level", _one_of(LOG_LEVELS)),
        **reader.field("log.file", "log_file", _path_or_none),
    )


def addresses(result: dict[str, Any]) -> tuple[str, ...]:
    """The addresses of a result, without prefix lengths; raises ConfigInvalid naming what has another form."""
    # Before 0.3.0: {"ip4": {"ip": "10.0.0.2/24"}, "ip6": …}; since then {"ips": [{"address": …}]}.
    entries: list[tuple[str, str, object]] = [
        (family, "ip", result[family]) for family in ("ip4", "ip6") if result.get(family) is not None
    ]
    listed = result.get("ips") or []
    if not isinstance(listed, list):
        raise ConfigInvalid(f"prevResult.ips is {_kind(listed)}, not a list")
    entries += [(f"ips[{index}]", "address", entry) for index, entry in enumerate(listed)]
    texts = []
    for where, key, entry in entries:
        address = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(address, str) or not _ADDRESS.issuperset(address):
            raise ConfigInvalid(f"prevResult.{where}.{key} is no address")
        texts.append(address.partition("/")[0])
    return tuple(texts)


class _Reader:
    """Takes values out of the configuration and collects what is wrong with them."""

    def __init__(self, plain: dict[str, Any]) -> None:
        self._plain = plain
        self.problems: list[str] = []

    def field(self, key: str | tuple[str, ...], name: str, check: Any) -> dict[str, Any]:
        """`{name: value}` for a key that is there and right, else `{}`, so that the default holds.

        `key` is a path through objects, with dots or as a tuple. null counts as absent, as in Go.
        """
        value: Any = self._plain
        steps = key.split(".") if isinstance(key, str) else key
        for depth, step in enumerate(steps):
            value = value.get(step)
            if value is None:
                return {}
            if depth + 1 < len(steps) and not isinstance(value, dict):
                problem = f"{'.'.join(steps[: depth + 1])} is {_kind(value)}, not an object"
                if problem not in self.problems:
                    self.problems.append(problem)
                return {}
        try:
            return {name: check(value)}
        except ValueError as error:
            self.problems.append(f"{'.'.join(steps)} is {_kind(value)}, {error}")
            return {}


def _valid_attachments(reader: _Reader) -> dict[str, Any]:
    # libcni writes both keys: early drafts of 1.1 had the second, and null where there is no attachment.
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        if key in reader._plain:
            found = reader.field((key,), "valid_attachments", _attachments)
            return found or {"valid_attachments": ()}
    return {}


def _kind(value: object) -> str:
    """A value as the message shows it: its type in JSON's words, and itself where it is short."""
    kinds = ((bool, "a boolean"), (str, "a string"), ((int, float), "a number"), (list, "a list"), (dict, "an object"))
    for types, kind in kinds:
        if isinstance(value, types):
            return (
                f"{kind} ({value!r})" if isinstance(value, (bool, int, float, str)) and len(repr(value)) < 80 else kind
            )
    return "null"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a string")
    return value


def _network_name(value: object) -> str:
    if not is_identifier(_text(value)):
        raise ValueError("not a network's name: letters, digits, '_', '.' and '-', beginning with a letter or digit")
    return _text(value)


def _path(value: object) -> str:
    text = _text(value)
    if not text.startswith("/") or "\0" in text or "/../" in f"{text}/":
        raise ValueError("not an absolute path without '..'")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not Unicode") from None
    return text


def _path_or_none(value: object) -> str:
    return _path(value) if value != "" else ""


def _one_of(choices: tuple[str, ...]) -> Any:
    def check(value: object) -> str:
        if value not in choices:
            raise ValueError(f"not one of {', '.join(choices)}")
        return _text(value)

    return check


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 3600:
        raise ValueError("not a number of seconds (0 to 3600)")
    return float(value)


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not all(isinstance(item, str) for item in _list(value)):
        raise ValueError("not a list of strings")
    return tuple(_list(value))


def _objects(value: object) -> tuple[dict[str, Any], ...]:
    if not all(isinstance(item, dict) for item in _list(value)):
        raise ValueError("not a list of objects")
    return tuple(_list(value))


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _annotations(value: object) -> dict[str, str]:
    if not all(isinstance(text, str) for text in _object(value).values()):
        raise ValueError("not an object of strings")
    return _object(value)


def _attachments(value: object) -> tuple[ValidAttachment, ...]:
    try:
        return tuple(ValidAttachment(_text(item["containerID"]), _text(item["ifname"])) for item in _list(value))
    except (TypeError, KeyError):
        raise ValueError("not a list of objects with containerID and ifname") from None
