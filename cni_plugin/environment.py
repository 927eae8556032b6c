"""What the runtime says in `CNI_…` variables: read and checked into one frozen `Invocation`.

Rules of the CNI specification 1.1, section "Parameters". libcni passes what is absent as an empty string,
so empty and absent are the same here. All that is missing is named at once, and so is all that is wrong:
nobody should have to try five times.
"""

from __future__ import annotations

from cni_plugin.errors import EnvironmentInvalid
from cni_plugin.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_ATTACHMENT = ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH")

REQUIRED: dict[str, tuple[str, ...]] = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    # The network namespace may be gone by then: containerd passes "" once it has closed it.
    "DEL": _ATTACHMENT,
    "GC": ("CNI_PATH",),
    "STATUS": (),
    "VERSION": (),
}
"""The variables that each verb needs besides CNI_COMMAND."""

_STRICT = ("ADD", "CHECK")
"""Verbs that refuse what is wrong in variables which DEL can do without: it must not fail over them."""
_POD = ("K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID")

INTERFACE_LIMIT = 15
"""Bytes of an interface's name (IFNAMSIZ without its terminator)."""

_ALPHANUMERIC = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_IDENTIFIER = _ALPHANUMERIC | frozenset("_.-")


class Invocation(Record):
    """One call of the plugin; what its verb does not require may be empty."""

    command: str
    container_id: str = ""
    netns: str = ""
    """Path of the pod's network namespace, opaque otherwise."""
    ifname: str = ""
    args: dict[str, str] = {}  # noqa: RUF012 - a Record's default is never changed
    """CNI_ARGS: `K8S_POD_NAMESPACE`, `K8S_POD_NAME`, `K8S_POD_UID` and whatever else the runtime says."""
    path: str = ""

    @property
    def pod(self) -> str:
        """`namespace/name`, or "" when no Kubernetes pod is named."""
        namespace, name = self.args.get("K8S_POD_NAMESPACE", ""), self.args.get("K8S_POD_NAME", "")
        return f"{namespace}/{name}" if namespace and name else ""


def read(environ: Mapping[str, str]) -> Invocation:
    """The invocation that `environ` describes; raises EnvironmentInvalid (code 4) naming every fault."""
    command = environ.get("CNI_COMMAND", "")
    if not command:
        # Without a verb nothing says what else is needed; ADD's needs are what the caller should know of.
        raise EnvironmentInvalid(_missing_fault(environ, ("CNI_COMMAND", *REQUIRED["ADD"])))
    if command not in REQUIRED:
        raise EnvironmentInvalid(f"CNI_COMMAND is {command!r}, one of {', '.join(REQUIRED)} is expected")
    invocation = as_given(environ)
    arguments_fault = _arguments(environ.get("CNI_ARGS", ""))[1]
    faults = [_missing_fault(environ, REQUIRED[command])]
    if "CNI_CONTAINERID" in REQUIRED[command]:
        faults += [_container_fault(invocation.container_id), _interface_fault(invocation.ifname)]
    if command in _STRICT:
        faults += [arguments_fault, _text_fault(invocation)]
    if any(faults):
        raise EnvironmentInvalid("; ".join([fault for fault in faults if fault]))
    return invocation


def as_given(environ: Mapping[str, str]) -> Invocation:
    """The invocation as far as it can be understood, with nothing of it checked: for the log of one that is wrong."""
    return Invocation(
        environ.get("CNI_COMMAND", ""),
        environ.get("CNI_CONTAINERID", ""),
        environ.get("CNI_NETNS", ""),
        environ.get("CNI_IFNAME", ""),
        _arguments(environ.get("CNI_ARGS", ""))[0],
        environ.get("CNI_PATH", ""),
    )


def is_identifier(text: str) -> bool:
    """Whether `text` has the form that the specification demands of container ids and network names."""
    return bool(text) and text[0] in _ALPHANUMERIC and _IDENTIFIER.issuperset(text)


def is_interface(text: str) -> bool:
    """Whether `text` may be an interface's name."""
    return bool(text) and not _interface_fault(text)


def _missing_fault(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    absent = [name for name in names if not environ.get(name)]
    return f"required environment variables are missing: {', '.join(absent)}" if absent else ""


def _arguments(text: str) -> tuple[dict[str, str], str]:
    """What can be understood of CNI_ARGS, and what is wrong with the rest."""
    arguments = {}
    fault = ""
    for pair in text.split(";"):
        if pair:
            key, equals, value = pair.partition("=")
            if equals and key:
                arguments[key] = value
            else:
                fault = fault or f"CNI_ARGS: {pair!r} is not KEY=VALUE"
    return arguments, fault


def _container_fault(identifier: str) -> str:
    """Nothing where there is none: that it is missing is said already."""
    if not identifier or is_identifier(identifier):
        return ""
    return (
        f"CNI_CONTAINERID {identifier!r} is invalid: "
        "letters, digits, '_', '.' and '-', beginning with a letter or digit"
    )


def _interface_fault(name: str) -> str:
    if name in (".", ".."):
        reason = "it must not be '.' or '..'"
    elif not _is_unicode(name):
        reason = "it is not UTF-8"
    elif len(name.encode()) > INTERFACE_LIMIT:
        reason = f"it is longer than {INTERFACE_LIMIT} bytes"
    elif any(character in "/:" or character.isspace() for character in name):
        reason = "it must not contain '/', ':' or space"
    else:
        return ""
    return f"CNI_IFNAME {name!r} is invalid: {reason}"


def _text_fault(invocation: Invocation) -> str:
    """What has no form in an attachment record, of that which only ADD and CHECK need."""
    texts = {"CNI_NETNS": invocation.netns, **{f"CNI_ARGS: {name}": invocation.args.get(name, "") for name in _POD}}
    return "; ".join([f"{name} {text!r} is not UTF-8" for name, text in texts.items() if not _is_unicode(text)])


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
