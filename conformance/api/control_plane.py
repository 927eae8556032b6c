"""A Kubernetes control plane of one test: etcd and kube-apiserver on the loopback of a network namespace of their own.

RBAC is on. Users are named by tokens of a file, so that a test can be any account, also one of a Deployment that
does not run here; the certificate is the one that the API server makes for itself.
"""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.testbed.host import Host
from tests.testbed.namespaces import TestbedError

ADMIN = "admin"
ACCOUNTS = {
    ADMIN: ("admin", ["system:masters"]),
    "node": ("system:serviceaccount:service-tunnel:node", ["system:serviceaccounts", "system:authenticated"]),
    "both": (  # a helper with both roles, as `run` by hand has them
        "system:serviceaccount:service-tunnel:ingress",
        ["system:serviceaccounts", "system:authenticated", "service-tunnel:nodes"],
    ),
    "stranger": ("stranger", ["system:authenticated"]),
    "ingress": ("system:serviceaccount:service-tunnel:ingress", ["system:serviceaccounts", "system:authenticated"]),
}
"""User name and groups by the names that tests use."""
_ETCD, _ETCD_PEERS = 2379, 2380
API_PORT = 6443
ADDRESS = "10.97.0.1"
"""Of a control plane on a host of its own; the API server refuses to be known by a loopback address."""
_PATIENCE = 90.0
"""Seconds until a program counts as one that does not start."""


class ControlPlane:
    """A context manager; the folders are those with the built programs.

    It runs on a host of its own, or on one that it is given, for clients that reach that one's `address`.
    """

    accounts: Mapping[str, tuple[str, Sequence[str]]] = ACCOUNTS
    admission: Sequence[str] = (
        "--authorization-mode=RBAC",
        "--disable-admission-plugins=ServiceAccount",  # nothing here makes the accounts of pods
    )
    """The API server's flags about who may do what."""

    def __init__(
        self,
        etcd: Path,
        kubernetes: Path,
        host: Host | None = None,
        address: str = ADDRESS,
        folder: Path | None = None,
    ) -> None:
        """`folder`: for its files, which go at the end; default: one of its own."""
        self._programs = {
            "etcd": str(etcd / "server"),
            "kube-apiserver": str(kubernetes / "kube-apiserver"),
            "kubectl": str(kubernetes / "kubectl"),
        }
        self.folder = folder or Path(tempfile.mkdtemp(prefix="svctun-control-"))
        self.host = host or Host("control")
        self._address = address
        self._own_host = host is None
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._port = API_PORT
        try:
            self.host.wait_ready()
            self.host.run("ip", "link", "set", "lo", "up")
            if host is None:
                self.host.run("ip", "addr", "add", f"{address}/32", "dev", "lo")
            self._write_keys()
            self.start_etcd()
            self.start_api()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for program in list(self._running):
            self.stop(program, kill=True)
        if self._own_host:
            self.host.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def trust(self) -> Path:
        """The certificate by which clients know the API server."""
        return self._certificates / "apiserver.crt"

    def kubeconfig(self, account: str = ADMIN) -> Path:
        """A file by which a client inside the control plane's namespace is that account."""
        path = self.folder / f"{account}.kubeconfig"
        cluster = {
            "server": f"https://{self._address}:{self._port}",
            "certificate-authority": str(self.trust),
        }
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": account, "user": {"token": account}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": account}}],
            "current-context": "c",
        }
        fresh = path.with_name(f"{path.name}.{threading.get_ident()}")  # pods are made several at once
        fresh.write_text(json.dumps(content))
        return fresh.replace(path)

    def kubectl(self, *arguments: str, account: str = ADMIN, objects: Sequence[Mapping[str, Any]] = ()) -> str:
        """What kubectl prints; `objects` go to its stdin. Raises CommandFailed."""
        stdin = yaml.safe_dump_all(objects) if objects else None
        return self.host.run(*self.kubectl_command(*arguments, account=account), input=stdin).stdout

    def kubectl_command(self, *arguments: str, account: str = ADMIN) -> tuple[str, ...]:
        """The command line of it, for the control plane's namespace."""
        return (self._programs["kubectl"], f"--kubeconfig={self.kubeconfig(account)}", *arguments)

    def apply(self, *objects: Mapping[str, Any]) -> None:
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", objects=objects)

    def get(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-n", namespace, "-o", "json"))
        return found

    def patch_service_status(self, name: str, patch: Mapping[str, Any], account: str = ADMIN) -> str:
        """One PATCH and nothing else, which kubectl does not do; returns what was refused, empty where it was taken."""
        url = f"https://{self._address}:{self._port}/api/v1/namespaces/default/services/{name}/status"
        headers = {"Authorization": f"Bearer {account}", "Content-Type": "application/merge-patch+json"}
        request = urllib.request.Request(url, json.dumps(patch).encode(), headers, method="PATCH")

        def send() -> str:
            trusted = ssl.create_default_context(cafile=self.trust)
            try:
                urllib.request.urlopen(request, context=trusted, timeout=10).close()
            except urllib.error.HTTPError as error:
                return str(json.loads(error.read())["message"])
            return ""

        return self.host.call(send)

    def events(self, about: str, namespace: str = "default") -> list[dict[str, Any]]:
        """Events about the object of this name."""
        selector = f"--field-selector=involvedObject.name={about}"
        found = json.loads(self.kubectl("get", "events", "-n", namespace, selector, "-o", "json"))
        items: list[dict[str, Any]] = found["items"]
        return items

    def start_etcd(self) -> None:
        client, peers = f"http://127.0.0.1:{_ETCD}", f"http://127.0.0.1:{_ETCD_PEERS}"
        self._start(
            "etcd", "--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync", "--log-level=warn",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}", f"--initial-cluster=default={peers}",
        )  # fmt: skip

        # An API server that does not find it within twenty seconds, which a busy machine may take, gives up.
        self._wait(lambda: self.host.call(_listens, _ETCD), "etcd")

    def start_api(self, *flags: str, port: int = API_PORT) -> None:
        """Returns when it is ready; at another port only kubeconfigs made from then on lead to it."""
        self._port = port
        keys = self.folder / "service-account"
        self._start(
            "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{_ETCD}", f"--secure-port={port}",
            f"--bind-address={self._address}", f"--advertise-address={self._address}",
            f"--cert-dir={self._certificates}",
            f"--token-auth-file={self.folder / 'tokens'}", *self.admission, "--profiling=false",
            "--allow-privileged=true",  # as installations that people use have it
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={keys}",
            f"--service-account-signing-key-file={keys}", "--service-cluster-ip-range=10.96.0.0/16,fd96::/108", *flags,
        )  # fmt: skip
        self._wait_ready()

    def stop(self, program: str, *, kill: bool = False) -> None:
        """Ends `etcd` or `kube-apiserver`, as a restart or (`kill`) a crash does."""
        process = self._running.pop(program)
        if kill:
            process.kill()
        else:
            process.terminate()
        process.wait(30)

    @property
    def _certificates(self) -> Path:
        return self.folder / "certificates"

    def _write_keys(self) -> None:
        lines = [
            f'{account},{user},{account},"{",".join(groups)}"' for account, (user, groups) in self.accounts.items()
        ]
        (self.folder / "tokens").write_text("\n".join(lines) + "\n")
        command = ["openssl", "genpkey", "-quiet", "-algorithm", "RSA", "-out", str(self.folder / "service-account")]
        subprocess.run(command, check=True, capture_output=True)

    def _start(self, program: str, *flags: str) -> None:
        with (self.folder / f"{program}.log").open("a") as log:
            command = (self._programs[program], *flags)
            self._running[program] = self.host.popen(*command, stdout=log, stderr=subprocess.STDOUT)

    def _wait_ready(self) -> None:
        command = (self._programs["kubectl"], f"--kubeconfig={self.kubeconfig()}", "get", "--raw=/readyz")
        self._wait(lambda: self.host.run(*command, check=False).returncode == 0, "kube-apiserver")

    def _wait(self, ready: Callable[[], bool], awaited: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not ready():
            for program, process in self._running.items():
                if process.poll() is not None:
                    raise TestbedError(f"{program} ended:\n{self._log(program)}")
            if time.monotonic() > deadline:
                raise TestbedError(f"{awaited} is not ready:\n{self._log(awaited)}")
            time.sleep(0.1)

    def _log(self, program: str) -> str:
        return (self.folder / f"{program}.log").read_text()[-3000:]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
