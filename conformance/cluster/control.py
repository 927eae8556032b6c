"""The control plane of a whole cluster: that of `conformance.api` with controllers, scheduler and accounts of nodes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from conformance.api.control_plane import ACCOUNTS, ControlPlane
from tests.testbed.host import Host

SERVICE_RANGES = "10.96.0.0/16,fd96::/108"
POD_RANGES = "10.244.0.0/16,fd00:10:244::/48"
CLIENT_KEY, CLIENT_CERTIFICATE = "kubelet-client.key", "kubelet-client.crt"
"""By which kubelets know the API server."""
_PARTS = {
    "kube-controller-manager": (
        "--use-service-account-credentials=true", "--allocate-node-cidrs=false", f"--cluster-cidr={POD_RANGES}",
        f"--service-cluster-ip-range={SERVICE_RANGES}",
        # A node that was rebooted is back sooner than a real one; one that is gone counts as gone soon.
        "--node-monitor-period=2s", "--node-monitor-grace-period=20s", "--secure-port=10257",
    ),
    "kube-scheduler": ("--secure-port=10259",),
}  # fmt: skip


class WholeControlPlane(ControlPlane):
    """Runs on a host that the nodes reach by `address`."""

    def __init__(
        self, programs: tuple[Path, Path], host: Host, address: str, folder: Path, nodes: Sequence[str]
    ) -> None:
        etcd, kubernetes = programs
        self.accounts = {
            **ACCOUNTS,
            **{f"kubelet-{node}": (f"system:node:{node}", ["system:nodes", "system:authenticated"]) for node in nodes},
            "kube-proxy": ("system:kube-proxy", ["system:authenticated"]),
            "kube-controller-manager": ("system:kube-controller-manager", ["system:authenticated"]),
            "kube-scheduler": ("system:kube-scheduler", ["system:authenticated"]),
        }
        super().__init__(etcd, kubernetes, host, address, folder)
        try:
            self._programs |= {part: str(kubernetes / part) for part in _PARTS}
            for part, flags in _PARTS.items():
                self._start_part(part, *flags)
            accounts = ("get", "serviceaccounts", "-o", "name")
            self._wait(lambda: "default" in self.kubectl(*accounts), "kube-controller-manager")
        except BaseException:
            self.close()
            raise

    def _write_keys(self) -> None:
        super()._write_keys()
        subject = "/O=system:masters/CN=kube-apiserver-kubelet-client"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", subject,
             "-addext", "extendedKeyUsage=clientAuth",
             "-keyout", self.folder / CLIENT_KEY, "-out", self.folder / CLIENT_CERTIFICATE],
            check=True, capture_output=True,
        )  # fmt: skip
        self.admission = (
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--kubelet-client-certificate={self.folder / CLIENT_CERTIFICATE}",
            f"--kubelet-client-key={self.folder / CLIENT_KEY}",
            "--kubelet-preferred-address-types=InternalIP",
        )

    def _start_part(self, part: str, *flags: str) -> None:
        config = self.kubeconfig(part)
        own = [f"--root-ca-file={self.trust}", f"--service-account-private-key-file={self.folder / 'service-account'}"]
        self._start(
            part, f"--kubeconfig={config}", f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}", "--leader-elect=false", "--bind-address=127.0.0.1",
            *flags, *(own if part == "kube-controller-manager" else ()),
        )  # fmt: skip
