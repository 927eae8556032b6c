"""What holds on a node whose helper does not answer: whether there is one at all, and which pods have to wait for it.

Loaded by the few calls that need it.
"""

from __future__ import annotations

import posix

from cni_plugin import config, trust

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_plugin.config import NetConf

NAMESPACES_LIMIT = 8 << 20
"""Bytes of the list of namespaces; a hundred thousand of the longest names."""


def has_helper(conf: NetConf) -> bool:
    """Whether a helper runs on this node, or has run: its socket or its list of namespaces is there."""
    for path in (conf.helper_socket, _namespaces_file(conf)):
        try:
            posix.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return True  # who knows; that it may not be looked at says that somebody takes care of it
        return True
    return False


def _namespaces_file(conf: NetConf) -> str:
    """The helper's list of namespaces with tunnels, one in a line, for the time in which it cannot be asked."""
    return f"{conf.state_dir}/tunnelled-namespaces"


def must_wait(conf: NetConf, namespace: str) -> bool:
    """Whether a pod of `namespace` is to be kept from starting while the helper is away."""
    if conf.when_helper_is_away != config.RETRY_IF_TUNNELLED:
        return conf.when_helper_is_away == config.RETRY
    try:
        listed = trust.read_file(_namespaces_file(conf), NAMESPACES_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return False  # a node that never had a helper knows of no tunnels
    except OSError:
        return True  # it had one, and who knows: a pod that waits does less harm than one that lacks its tunnels
    return namespace.encode() in listed.split()
