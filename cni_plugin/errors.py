"""The errors that the plugin reports to the runtime: one class per code of the CNI specification.

What a verb cannot do is raised as a `CniError` and printed by `__main__` as the JSON object of the
specification's section "Error". Codes below 100 belong to the specification, the others are ours. The
message names the object and the way out, since it ends up in `kubectl describe pod`.
"""

from __future__ import annotations


class CniError(Exception):
    """Base: `msg` is one line for the reader, `details` whatever else helps to find the cause."""

    code = 100

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details

    def to_json(self, cni_version: str) -> str:
        """The error object that goes to stdout."""
        from cni_plugin import jsontext

        plain: dict[str, object] = {"cniVersion": cni_version, "code": self.code, "msg": self.msg}
        if self.details:
            plain["details"] = self.details
        return jsontext.dumps(plain)


class VersionUnsupported(CniError):
    code = 1


class EnvironmentInvalid(CniError):
    code = 4


class IoFailure(CniError):
    code = 5


class Undecodable(CniError):
    code = 6


class ConfigInvalid(CniError):
    code = 7


class TryLater(CniError):
    code = 11


class Unavailable(CniError):
    """The plugin itself cannot serve any ADD on this node."""

    code = 50


class Unexpected(CniError):
    """A fault of this program: the details carry the exception."""

    code = 100


class PodSideFailed(CniError):
    """The pod's network namespace could not be given its tunnels."""

    code = 101


class Missing(CniError):
    """CHECK: something that ADD made is not there any more."""

    code = 102
