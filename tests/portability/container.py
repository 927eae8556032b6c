"""What a container runtime makes of a container of our manifests, on a node of the testbed, without a runtime.

The image's root, read-only; of the node the folders that the manifest mounts, with the propagation that it says; the
node's network; /proc/sys read-only, as runtimes have it; and exactly the capabilities that the manifest names. What is
not here: seccomp, AppArmor, cgroups, and a process namespace of its own.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from install.kubernetes import HERE
from tests.testbed.host import Host

PROPAGATION = {"HostToContainer": "rslave", "Bidirectional": "rshared", None: "rprivate"}


def pods(manifest: str = "service-tunnel") -> dict[str, dict[str, Any]]:
    """The specs of the pods of one manifest, by the DaemonSet's name."""
    objects = yaml.safe_load_all((HERE / f"{manifest}.yaml").read_text())
    return {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in objects if one["kind"] == "DaemonSet"}


def variables(container: Mapping[str, Any], node: str) -> dict[str, str]:
    return {one["name"]: one.get("value", node) for one in container.get("env", ())}


def start(
    host: Host,
    root: Path,
    pod: Mapping[str, Any],
    name: str,
    node: str,
    more: Sequence[str] = (),
    volumes: Sequence[str] = (),
    **options: Any,
) -> subprocess.Popen[str]:
    """The container `name` of a pod; `more`: further arguments; `volumes`: paths of the node that it has, too."""
    found = next(one for one in [*pod.get("initContainers", ()), *pod["containers"]] if one["name"] == name)
    paths = {volume["name"]: volume["hostPath"] for volume in pod["volumes"]}
    mounts = [(paths[one["name"]]["path"], one["mountPath"], one) for one in found["volumeMounts"]]
    mounts += [(path, path, {}) for path in volumes]
    place = f"/run/containers/{name}"
    lines = [
        "set -e",
        "unset LD_LIBRARY_PATH",
        # A testbed's node shares /run/netns alone, so it sees no other mount that is made here.
        f"mkdir -p {place}/layer {place}/root && mount -t tmpfs none {place}/layer",
        f"mkdir {place}/layer/u {place}/layer/w",
        f"mount -t overlay -o lowerdir={root},upperdir={place}/layer/u,workdir={place}/layer/w overlay {place}/root",
        f"R={place}/root",
        "mkdir -p $R/proc $R/sys $R/dev",
        "mount --rbind /proc $R/proc && mount --make-rslave $R/proc",
        "mount -t sysfs -o ro sysfs $R/sys",
        "touch $R/dev/null && mount --bind /dev/null $R/dev/null",
    ]
    if not found["securityContext"].get("privileged"):
        lines.append("mount --bind $R/proc/sys $R/proc/sys && mount -o remount,bind,ro $R/proc/sys")
    for outside, inside, how in mounts:
        kind = next((one.get("type", "") for one in paths.values() if one["path"] == outside), "Directory")
        if kind.startswith("File"):
            lines.append(f"mkdir -p $R$(dirname {inside}); touch {outside} $R{inside}")
        else:
            lines.append(f"mkdir -p {outside} $R{inside}")
        lines.append(f"mount --rbind {outside} $R{inside}")
        lines.append(f"mount --make-{PROPAGATION[how.get('mountPropagation')]} $R{inside}")
        if how.get("readOnly"):
            lines.append(f"mount -o remount,bind,ro $R{inside}")
    lines.append("mount -o remount,ro $R")
    variables_ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **variables(found, node)}
    environment = [f"{key}={value}" for key, value in variables_.items()]
    command = ["env", "-i", *environment, *_rights(found["securityContext"]), *found["command"], *more]
    lines.append(f"exec chroot $R {shlex.join(command)}")
    # "unchanged": what is shared stays shared, so that the node sees what a Bidirectional mount brings.
    return host.popen("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", "\n".join(lines), **options)


def _rights(context: Mapping[str, Any]) -> list[str]:
    if context.get("privileged"):
        return []
    assert context["capabilities"]["drop"] == ["ALL"] and context["allowPrivilegeEscalation"] is False
    names = ",".join(f"+{name.lower()}" for name in context["capabilities"]["add"])
    return ["setpriv", f"--bounding-set=-all,{names}", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]
