"""The verbs of the CNI specification: what the runtime wants done, in the order in which it is done.

ADD writes its attachment record before it asks for tunnels, so that a Service annotated while ADD runs is
not missed: the helper sees the record and looks again. Before the first change the record says what the pod
is about to get: whatever interrupts ADD then, DEL, GC and the next ADD know what there may be to undo. A
failure that the plugin survives it undoes itself. DEL
forgives nearly everything, because the runtime calls it in any state and an error of it stops the chain.
A verb returns the text for stdout; what it cannot do it raises as a `CniError`.

What only some calls need is imported where it is needed: most pods have no tunnel and shall not pay for
the code that makes one.
"""

from __future__ import annotations

from cni_plugin import attachment, config, jsontext, logfile, netns
from cni_plugin.attachment import Attachment
from cni_plugin.errors import (
    CniError,
    ConfigInvalid,
    EnvironmentInvalid,
    IoFailure,
    Missing,
    PodSideFailed,
    TryLater,
)
from cni_plugin.tunnel import NOTHING, PodTunnels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_plugin.config import NetConf
    from cni_plugin.environment import Invocation

OK, NONE, ERROR = "ok", "none", "error"
"""How a call ended, in its last line of the log: done, done for a pod without tunnels, not done."""

EXEMPT_WAIT = 1.0
"""Seconds that a pod of an exempt namespace waits for the helper: it passes in any case, and may be what
brings the helper up."""


def add(invocation: Invocation, conf: NetConf) -> str:
    """Gives the pod its tunnels and returns prevResult as it came."""
    result = conf.prev_result
    if result is None:
        raise ConfigInvalid(
            "prevResult is missing: service-tunnel is a chained plugin, list it after the one that adds the interface"
        )
    # Everything that can be wrong with the input is found before anything is changed.
    output = jsontext.dumps({**result, "cniVersion": conf.cni_version})
    inode = _inode(invocation)
    wanted = _standalone(invocation, conf)
    had = _earlier(invocation, conf, inode)
    record = _record(invocation, conf, result, inode).replace(
        standalone=wanted is not None, tunnels=_both(had, wanted or NOTHING)
    )
    key = (record.network, record.container, record.interface)
    try:
        attachment.remove_unfinished(conf.run_dir, *key)
    except OSError as error:
        raise _not_recorded(conf, error) from error
    _write(conf, record)
    try:
        source = "standalone"
        if wanted is None:
            wanted, source = _ask(invocation, conf, record)
        operations: list[str] = []
        warnings: list[str] = []
        if record.tunnels.tunnels or wanted.tunnels:
            record = _announce(conf, record, _both(had, wanted))
            operations = _configure(conf, record, wanted, had, warnings.append)
        _write(conf, record.replace(state=attachment.READY, tunnels=wanted))
    except BaseException:
        _undo(invocation, conf, record)
        raise
    if warnings:
        _log(invocation, conf, "warning", warnings=warnings)
    outcome = OK if wanted.tunnels else NONE
    _log(invocation, conf, "info", outcome=outcome, source=source, tunnels=len(wanted.tunnels), operations=operations)
    return output


def delete(invocation: Invocation, conf: NetConf) -> str:
    """Takes the tunnels out of the pod, if it is still there, and forgets the attachment; never fails."""
    troubles = list(conf.problems)
    known: Attachment | None = None
    try:
        if conf.name:
            known = attachment.read(conf.run_dir, conf.name, invocation.container_id, invocation.ifname)
        forget = bool(conf.name)
    except (OSError, ValueError) as error:
        troubles.append(str(error))
        forget = not isinstance(error, attachment.NewerRecord)
    troubles += _clear(conf, (conf.name, invocation.container_id, invocation.ifname), known, invocation.netns)
    if forget:
        try:
            attachment.remove(conf.run_dir, conf.name, invocation.container_id, invocation.ifname)
        except OSError as error:
            # The record outlives its pod: the helper drops it when the namespace behind it is another.
            troubles.append(f"the attachment record stays: {error.strerror}")
    _log(invocation, conf, "warning" if troubles else "info", outcome=OK, known=known is not None, troubles=troubles)
    return ""


def check(invocation: Invocation, conf: NetConf) -> str:
    """Complains, with code 102, about whatever of ADD's work is not there any more."""
    if conf.prev_result is None:
        raise ConfigInvalid("prevResult is missing: CHECK needs the result of ADD")
    inode = _inode(invocation)
    try:
        known = attachment.read(conf.run_dir, conf.name, invocation.container_id, invocation.ifname)
    except (OSError, attachment.NewerRecord) as error:
        raise IoFailure(f"the attachment record below runDir {conf.run_dir} cannot be read: {error}") from None
    except ValueError as error:
        raise Missing(f"the attachment record is damaged: {error}") from None
    if known is None:
        raise Missing(
            f"no attachment record of interface {invocation.ifname} of container {invocation.container_id}",
            f"looked for in {attachment.directory(conf.run_dir)}; restart the pod",
        )
    if known.state != attachment.READY:
        verb = "DEL or GC" if known.state == attachment.ENDING else "ADD"
        raise Missing(f"{verb} of this attachment was interrupted", "restart the pod")
    if known.inode != inode:
        raise Missing(
            f"the attachment record is of another network namespace than {invocation.netns}", "restart the pod"
        )
    if known.tunnels.tunnels:
        from cni_plugin import pod, sharing

        key = (known.network, known.container, known.interface)
        try:
            differences = sharing.missing(conf.run_dir, key, invocation.netns, inode, known.tunnels)
        except pod.PodError as error:
            raise PodSideFailed(str(error), error.details) from None
        if differences:
            raise Missing(
                f"the pod's network namespace is not as ADD left it: {'; '.join(differences)}", "restart the pod"
            )
    _log(invocation, conf, "info", outcome=OK)
    return ""


def collect_garbage(invocation: Invocation, conf: NetConf) -> str:
    """Forgets the attachments of this network that the runtime does not list as valid, and clears their pods.

    Each for itself: what cannot be read or removed does not keep the others.
    """
    if conf.valid_attachments is None:
        # libcni gives no list to a runtime that gave it none; that is not the word that no pod is left.
        _log(invocation, conf, "warning", outcome=OK, troubles=["no cni.dev/valid-attachments: nothing is removed"])
        return ""
    valid = {(item.container, item.interface) for item in conf.valid_attachments}
    troubles: list[str] = []
    removed: list[str] = []
    try:
        keys = {key for name in attachment.files(conf.run_dir) if (key := attachment.owner(name))}
    except OSError as error:
        keys = set()
        troubles.append(f"{attachment.directory(conf.run_dir)}: {error.strerror}")
    for network, container, interface in sorted(keys):
        if network != conf.name or (container, interface) in valid:
            continue
        known: Attachment | None = None
        try:
            known = attachment.read(conf.run_dir, network, container, interface)
        except attachment.NewerRecord as error:
            troubles.append(str(error))
            continue
        except (OSError, ValueError) as error:
            troubles.append(str(error))
        left = [] if known is None else _clear(conf, (network, container, interface), known, known.netns)
        if left:
            troubles += left  # the record stays for the next GC
            continue
        name = attachment.file_name(network, container, interface)
        try:
            attachment.remove(conf.run_dir, network, container, interface)
            removed.append(name)
        except OSError as error:
            troubles.append(f"{name}: {error.strerror}")
    _log(invocation, conf, "warning" if troubles else "info", outcome=OK, removed=removed, troubles=troubles)
    return ""


def status(invocation: Invocation, conf: NetConf) -> str:
    """Raises Unavailable (code 50) when no ADD could work here; says nothing about the helper.

    If it did, every upgrade of the helper would turn the nodes NotReady.
    """
    from cni_plugin import readiness

    readiness.examine(conf.run_dir)
    _log(invocation, conf, "debug", outcome=OK)  # runtimes ask for it all the time
    return ""


def _record(invocation: Invocation, conf: NetConf, result: dict[str, object], inode: int) -> Attachment:
    return Attachment(
        network=conf.name,
        container=invocation.container_id,
        interface=invocation.ifname,
        netns=invocation.netns,
        inode=inode,
        namespace=invocation.args.get("K8S_POD_NAMESPACE", ""),
        name=invocation.args.get("K8S_POD_NAME", ""),
        uid=invocation.args.get("K8S_POD_UID", ""),
        ips=config.addresses(result),
    )


def _inode(invocation: Invocation) -> int:
    """Of the pod's network namespace; raises EnvironmentInvalid where CNI_NETNS leads to none."""
    try:
        return netns.of_pod(invocation.netns)[1]
    except netns.NoPodNetns as error:
        raise EnvironmentInvalid(f"CNI_NETNS {error}") from None


def _standalone(invocation: Invocation, conf: NetConf) -> PodTunnels | None:
    """The tunnels of standalone use; None where the helper is to say, also for a pod with an annotation of its own.

    Standalone is a network whose chain entry has tunnels, and a pod with annotations where no helper could answer for
    it. Anywhere else an annotation would let whoever writes a pod take any address, past the helper's VIP ranges.
    """
    if not conf.tunnels:
        if config.VIPS_ANNOTATION not in conf.pod_annotations:
            return None
        from cni_plugin import helper_away

        if invocation.pod and helper_away.has_helper(conf):
            warning = f"{config.VIPS_ANNOTATION} of the pod: the helper decides here"
            _log(invocation, conf, "warning", warnings=[warning])
            return None
    from cni_plugin.standalone import tunnels_of

    return tunnels_of(conf)


def _ask(invocation: Invocation, conf: NetConf, record: Attachment) -> tuple[PodTunnels, str]:
    """The tunnels by the helper's word, and who decided; raises TryLater when the pod must not start without."""
    if not invocation.pod:
        # Only Kubernetes' pods can be behind a Service.
        return NOTHING, "no Kubernetes pod"
    from cni_plugin import helper_client

    exempt = record.namespace in conf.exempt_namespaces
    request = {
        "op": "tunnels",
        "namespace": record.namespace,
        "name": record.name,
        "uid": record.uid,
        "container": record.container,
        "interface": record.interface,
        "network": record.network,
        "netns": record.netns,
        "ips": list(record.ips),
    }
    wait = min(conf.helper_wait, EXEMPT_WAIT) if exempt else conf.helper_wait
    answer = helper_client.ask(conf.helper_socket, request, wait)
    if answer.kind != helper_client.UNKNOWN:
        return answer.pod, "helper"
    from cni_plugin import helper_away

    if not exempt and helper_away.must_wait(conf, record.namespace):
        raise TryLater(
            f"pod {invocation.pod} waits for its tunnels: {answer.trouble}",
            f"waited {wait:g} s; whenHelperIsAway is {conf.when_helper_is_away}: see to service-tunnel-helper on this "
            "node, or list the namespace in exemptNamespaces of the chain entry",
        )
    _log(invocation, conf, "warning", source="helper away", trouble=answer.trouble, exempt=exempt)
    return NOTHING, "helper away"


def _earlier(invocation: Invocation, conf: NetConf, inode: int) -> PodTunnels:
    """What may be in the pod already, by the record of an ADD that was interrupted or is repeated."""
    try:
        known = attachment.read(conf.run_dir, conf.name, invocation.container_id, invocation.ifname)
    except (OSError, attachment.NewerRecord) as error:
        raise IoFailure(f"the attachment record below runDir {conf.run_dir} cannot be read: {error}") from None
    except ValueError:
        return NOTHING  # rubbish, which the new record replaces
    return known.tunnels if known is not None and known.inode == inode else NOTHING


def _both(one: PodTunnels, two: PodTunnels) -> PodTunnels:
    return two.replace(tunnels=tuple(dict.fromkeys(one.tunnels + two.tunnels)))


def _announce(conf: NetConf, record: Attachment, tunnels: PodTunnels) -> Attachment:
    """Puts into the record what the pod is about to get: who comes after us, should we be killed, knows of it."""
    if tunnels == record.tunnels:
        return record
    announced = record.replace(tunnels=tunnels)
    _write(conf, announced)
    return announced


def _write(conf: NetConf, record: Attachment) -> None:
    try:
        attachment.write(conf.run_dir, record)
    except OSError as error:
        raise _not_recorded(conf, error) from error


def _not_recorded(conf: NetConf, error: OSError) -> IoFailure:
    at = f"{error.filename}: " if error.filename else ""
    return IoFailure(f"no attachment record below runDir {conf.run_dir}: {at}{error.strerror or error}")


def _configure(
    conf: NetConf, record: Attachment, wanted: PodTunnels, had: PodTunnels, warn: Callable[[str], None]
) -> list[str]:
    from cni_plugin import pod, sharing

    key = (record.network, record.container, record.interface)
    try:
        return sharing.configure(conf.run_dir, key, record.netns, record.inode, wanted, had, warn)
    except pod.PodError as error:
        raise PodSideFailed(str(error), error.details) from None


def _undo(invocation: Invocation, conf: NetConf, record: Attachment) -> None:
    """After a failed ADD: what is raised then matters more than what cannot be undone, so nothing is raised here.

    A pod that could not be cleared keeps its record, by which DEL and GC know of it.
    """
    key = (record.network, record.container, record.interface)
    troubles = _clear(conf, key, record, record.netns)
    if not troubles:
        try:
            attachment.remove(conf.run_dir, *key)
        except OSError as error:
            troubles.append(f"the attachment record stays: {error.strerror}")
    if troubles:
        _log(invocation, conf, "warning", troubles=troubles)


def _clear(conf: NetConf, key: tuple[str, str, str], known: Attachment | None, path: str) -> list[str]:
    if known is not None and not known.tunnels.tunnels:
        return []
    from cni_plugin import leftovers

    if known is not None and known.state == attachment.READY:
        # The helper, should it be at work in the pod, sees by this that it is no longer its to configure.
        try:
            attachment.write(conf.run_dir, known.replace(state=attachment.ENDING))
        except (OSError, ValueError):
            pass  # on a full disk the pod is to be cleared all the same
    return leftovers.clear(conf.run_dir, key, known, path)


def _log(invocation: Invocation, conf: NetConf, level: str, **fields: object) -> None:
    logfile.append(
        conf.log_file,
        conf.log_level,
        level,
        command=invocation.command,
        network=conf.name,
        container=invocation.container_id,
        interface=invocation.ifname,
        pod=invocation.pod,
        **fields,
    )


def log_error(invocation: Invocation, conf: NetConf, error: CniError) -> None:
    """The line for a verb that failed."""
    _log(invocation, conf, "error", outcome=ERROR, code=error.code, msg=error.msg, details=error.details)
