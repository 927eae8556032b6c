"""Kubernetes objects, as parsed from YAML or JSON, to the project's model; strict about their shape.

Nothing here is trusted to have been validated by an API server: a field of the wrong shape is an
`ObjectError` that says which, so that whoever wrote the file can mend it. Unknown kinds and fields are
passed over, since a folder of manifests holds whatever a cluster holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TypeVar

from node_helper.model import (
    Endpoint,
    IPAddress,
    IPNetwork,
    Node,
    ObjectKey,
    Pod,
    Problem,
    Service,
    ServicePort,
    Snapshot,
)

FieldPath = tuple[str | int, ...]
"""The way to a field: keys of mappings, indices of lists."""
Identity = tuple[str, ObjectKey]
"""Kind and key."""

OWN_ANNOTATIONS = "cmd.nu/"
SERVICE_NAME = "kubernetes.io/service-name"
DEFAULT_NAMESPACE = "default"

_PROTOCOLS = {"TCP": "tcp", "UDP": "udp", "SCTP": None}
_AFFINITIES = {"": False, "None": False, "ClientIP": True}
_TRAFFIC_POLICIES = {"": False, "Cluster": False, "Local": True}
_FINISHED = frozenset({"Succeeded", "Failed"})
_NODE_ADDRESSES = frozenset({"InternalIP", "ExternalIP"})
_IP_VERSIONS = {"IPv4": 4, "IPv6": 6, "FQDN": None}
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_NESTED_LISTS = 8


class ObjectError(Exception):
    """An object of the wrong shape; the message names kind, namespace/name and field."""

    def __init__(self, kind: str, key: ObjectKey | None, path: FieldPath, fault: str) -> None:
        super().__init__(f"{kind} {key or 'without a name'}: {_dotted(path)} {fault}")
        self.path = path
        self.identity: Identity | None = None if key is None else (kind, key)


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One member of an EndpointSlice."""

    address: IPAddress
    uid: str
    """The pod's, or empty."""
    pod: ObjectKey | None
    node: str
    ready: bool
    serving: bool
    terminating: bool


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    key: ObjectKey
    service: ObjectKey | None
    endpoints: tuple[SliceEndpoint, ...]


Choice = TypeVar("Choice")
KubernetesObject = Service | EndpointSlice | Pod | Node


def flatten(document: object) -> Iterator[tuple[FieldPath, object]]:
    """The objects of a document, each with the way to it: itself, or the items of a List (of lists).

    Items of a typed list (`ServiceList`), which carry no kind of their own, get it. An empty document has none.
    """
    return _flatten(document, (), _NESTED_LISTS)


def _flatten(document: object, path: FieldPath, depth: int) -> Iterator[tuple[FieldPath, object]]:
    kind = document.get("kind") if isinstance(document, dict) else None
    if document is None:
        return
    if not isinstance(document, dict) or not isinstance(kind, str) or not kind.endswith("List"):
        yield path, document
        return
    items = document.get("items")
    if items is None:
        items = []
    if not isinstance(items, list) or depth == 0:
        raise ObjectError(kind, None, (*path, "items"), "is no list of objects")
    for position, item in enumerate(items):
        if isinstance(item, dict) and kind != "List" and "kind" not in item:
            item = {"apiVersion": document.get("apiVersion"), **item, "kind": kind.removesuffix("List")}  # noqa: PLW2901
        yield from _flatten(item, (*path, "items", position), depth - 1)


def read_object(document: object) -> KubernetesObject | None:
    """One object of the model; None for kinds that this project does not use. Raises ObjectError."""
    if not isinstance(document, dict):
        raise ObjectError("object", None, (), f"is {_shown(document)}, not a Kubernetes object")
    kind, version = document.get("kind"), document.get("apiVersion")
    if not isinstance(kind, str) or not isinstance(version, str):
        raise ObjectError("object", None, ("apiVersion" if isinstance(kind, str) else "kind",), "is missing or no text")
    reader = _READERS.get((version, kind))
    if reader is not None:
        return reader(_Field(document, (), kind, None))
    if kind == "EndpointSlice" and version.startswith("discovery.k8s.io/"):
        key = _key(_Field(document, (), kind, None))
        raise ObjectError(kind, key, ("apiVersion",), f"is {version}; write discovery.k8s.io/v1")
    return None


def identity_of(found: KubernetesObject) -> Identity:
    return type(found).__name__, ObjectKey("", found.name) if isinstance(found, Node) else found.key


def snapshot_of(objects: Iterable[KubernetesObject], problems: Iterable[Problem] = ()) -> Snapshot:
    """All objects together, with the slices of each Service merged; of two of one identity the last counts."""
    services: dict[ObjectKey, Service] = {}
    pods: dict[ObjectKey, Pod] = {}
    nodes: dict[str, Node] = {}
    slices: dict[ObjectKey, EndpointSlice] = {}
    for found in objects:
        if isinstance(found, Service):
            services[found.key] = found
        elif isinstance(found, Pod):
            pods[found.key] = found
        elif isinstance(found, Node):
            nodes[found.name] = found
        else:
            slices[found.key] = found
    return Snapshot(services, merged(slices.values()), pods, nodes, tuple(problems))


def merged(slices: Iterable[EndpointSlice]) -> dict[ObjectKey, tuple[Endpoint, ...]]:
    """Endpoints by Service: members of any of its slices that are one pod, or one address, are one endpoint.

    A pod is in one slice per IP version, and for a moment in two of one version. What one slice already says
    holds: it ends (terminating) or is there (ready).
    """
    services: dict[ObjectKey, dict[object, list[SliceEndpoint]]] = {}
    for part in slices:
        if part.service is not None:
            members = services.setdefault(part.service, {})
            for member in part.endpoints:
                members.setdefault(member.uid or member.pod or member.address, []).append(member)
    return {
        service: tuple(sorted(map(_merged, members.values()), key=lambda endpoint: _order(endpoint.address)))
        for service, members in services.items()
    }


def _merged(members: list[SliceEndpoint]) -> Endpoint:
    return Endpoint(
        addresses=tuple(sorted({member.address for member in members}, key=_order)),
        pod=next((member.pod for member in members if member.pod is not None), None),
        node=next((member.node for member in members if member.node), ""),
        ready=any(member.ready for member in members),
        serving=any(member.serving for member in members),
        terminating=any(member.terminating for member in members),
    )


def _order(address: IPAddress) -> tuple[int, int]:
    return address.version, int(address)


@dataclass(frozen=True, slots=True)
class _Field:
    """A value inside an object, which knows its place there for messages."""

    value: object
    path: FieldPath
    kind: str
    key: ObjectKey | None

    def error(self, fault: str) -> ObjectError:
        return ObjectError(self.kind, self.key, self.path, fault)

    def _mapping(self) -> dict[object, object]:
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error(f"is {_shown(self.value)}, not a mapping")
        return self.value

    def at(self, *names: str) -> _Field:
        """The field by its keys; its value is None where it or a mapping around it is absent."""
        field = self
        for name in names:
            field = _Field(field._mapping().get(name), (*field.path, name), self.kind, self.key)
        return field

    def items(self) -> list[_Field]:
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            raise self.error(f"is {_shown(self.value)}, not a list")
        return [_Field(item, (*self.path, position), self.kind, self.key) for position, item in enumerate(self.value)]

    def text(self, default: str = "") -> str:
        if self.value is None:
            return default
        if not isinstance(self.value, str):
            raise self.error(f"is {_shown(self.value)}, not text (quote it)")
        return self.value

    def flag(self, default: bool) -> bool:
        if self.value is None:
            return default
        if not isinstance(self.value, bool):
            raise self.error(f"is {_shown(self.value)}, not true or false")
        return self.value

    def port(self) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not 0 < self.value < 65536:
            raise self.error(f"is {_shown(self.value)}, not a number from 1 to 65535")
        return self.value

    def texts(self, prefix: str = "") -> dict[str, str]:
        """A mapping of text to text, of which only keys with the prefix are looked at."""
        texts = {}
        for name, value in self._mapping().items():
            if not isinstance(name, str):
                raise self.error(f"has the key {_shown(name)}, which is no text (quote it)")
            if name.startswith(prefix):
                texts[name] = _Field(value, (*self.path, name), self.kind, self.key).text()
        return texts

    def among(self, choices: dict[str, Choice], default: str | None = None) -> Choice:
        text = default if self.value is None and default is not None else self.text()
        if text not in choices:
            raise self.error(f"is {_shown(self.value)}, not one of {', '.join(filter(None, choices))}")
        return choices[text]

    def address(self) -> IPAddress:
        try:
            return ip_address(self.text())
        except ValueError:
            raise self.error(f"is {_shown(self.value)}, not an IP address") from None

    def network(self) -> IPNetwork:
        try:
            return ip_network(self.text(), strict=False)
        except ValueError:
            raise self.error(f"is {_shown(self.value)}, not an IP range") from None


def _key(document: _Field, namespaced: bool = True) -> ObjectKey:
    """Names are checked, because files are named after them (bucket tables beside the manifests)."""
    name, namespace = document.at("metadata", "name"), document.at("metadata", "namespace")
    if not _SUBDOMAIN.fullmatch(name.text()):
        raise name.error(f"is {_shown(name.value)}, not a name of lower case letters, digits, '-' and '.'")
    if not namespaced:
        return ObjectKey("", name.text())
    if not _LABEL.fullmatch(namespace.text() or DEFAULT_NAMESPACE):
        raise namespace.error(f"is {_shown(namespace.value)}, not a name of lower case letters, digits and '-'")
    return ObjectKey(namespace.text() or DEFAULT_NAMESPACE, name.text())


def _named(document: _Field, namespaced: bool = True) -> tuple[_Field, ObjectKey]:
    key = _key(document, namespaced)
    return _Field(document.value, (), document.kind, key), key


def _service(document: _Field) -> Service:
    document, key = _named(document)
    metadata, spec = document.at("metadata"), document.at("spec")
    listed = spec.at("clusterIPs").items() or [spec.at("clusterIP")]
    ports = [_service_port(port) for port in spec.at("ports").items()]
    return Service(
        key=key,
        uid=metadata.at("uid").text(),
        created=metadata.at("creationTimestamp").text(),
        annotations=metadata.at("annotations").texts(OWN_ANNOTATIONS),
        selector=spec.at("selector").texts(),
        ports=tuple(port for port in ports if port is not None),
        client_ip_affinity=spec.at("sessionAffinity").among(_AFFINITIES, ""),
        local_traffic_policy=spec.at("externalTrafficPolicy").among(_TRAFFIC_POLICIES, ""),
        cluster_ips=tuple(ip.address() for ip in listed if ip.text() not in ("", "None")),
    )


def _service_port(field: _Field) -> ServicePort | None:
    protocol = field.at("protocol").among(_PROTOCOLS, "TCP")
    number, target = field.at("port").port(), field.at("targetPort")
    target_port: int | str
    if target.value in (None, 0, ""):
        target_port = number
    elif isinstance(target.value, str):
        if target.value.isdecimal():
            raise target.error(f"is the text {target.value!r}: write the number without quotes")
        target_port = target.value
    else:
        target_port = target.port()
    return None if protocol is None else ServicePort(field.at("name").text(), protocol, number, target_port)


def _endpoint_slice(document: _Field) -> EndpointSlice:
    document, key = _named(document)
    service = document.at("metadata", "labels").texts().get(SERVICE_NAME)
    version = document.at("addressType").among(_IP_VERSIONS)
    endpoints = document.at("endpoints").items() if version is not None else []
    return EndpointSlice(
        key=key,
        service=ObjectKey(key.namespace, service) if service else None,
        endpoints=tuple(_slice_endpoint(endpoint, key.namespace, version) for endpoint in endpoints),
    )


def _slice_endpoint(field: _Field, namespace: str, version: int | None) -> SliceEndpoint:
    addresses, reference, conditions = field.at("addresses").items(), field.at("targetRef"), field.at("conditions")
    if not addresses:
        raise field.at("addresses").error("is empty, at least one address is needed")
    # The API calls the others fungible and says that the first is enough; kube-proxy takes only that too.
    address = addresses[0].address()
    if address.version != version:
        raise addresses[0].error(f"is {address}, which is not of the slice's addressType")
    pod = None
    if reference.at("kind").text() == "Pod" and reference.at("name").text():
        pod = ObjectKey(reference.at("namespace").text() or namespace, reference.at("name").text())
    ready = conditions.at("ready").flag(True)
    return SliceEndpoint(
        address=address,
        uid=reference.at("uid").text(),
        pod=pod,
        node=field.at("nodeName").text(),
        ready=ready,
        serving=conditions.at("serving").flag(ready),
        terminating=conditions.at("terminating").flag(False),
    )


def _pod(document: _Field) -> Pod:
    document, key = _named(document)
    metadata, spec, status = document.at("metadata"), document.at("spec"), document.at("status")
    ips = [item.at("ip") for item in status.at("podIPs").items()] or [status.at("podIP")]
    ports: dict[str, int] = {}
    for container in (*spec.at("containers").items(), *spec.at("initContainers").items()):
        for port in container.at("ports").items():
            if name := port.at("name").text():
                # Of two containers' ports of one name Kubernetes takes the first, containers before sidecars.
                ports.setdefault(name, port.at("containerPort").port())
    return Pod(
        key=key,
        uid=metadata.at("uid").text(),
        node=spec.at("nodeName").text(),
        labels=metadata.at("labels").texts(),
        annotations=metadata.at("annotations").texts(OWN_ANNOTATIONS),
        ips=tuple(sorted((ip.address() for ip in ips if ip.text()), key=_order)),
        host_network=spec.at("hostNetwork").flag(False),
        ports=ports,
        finished=status.at("phase").text() in _FINISHED,
        terminating=metadata.at("deletionTimestamp").value is not None,
    )


def _node(document: _Field) -> Node:
    document, key = _named(document, namespaced=False)
    spec = document.at("spec")
    cidrs = spec.at("podCIDRs").items() or [spec.at("podCIDR")]
    addresses = document.at("status", "addresses").items()
    return Node(
        name=key.name,
        labels=document.at("metadata", "labels").texts(),
        addresses=tuple(
            item.at("address").address() for item in addresses if item.at("type").text() in _NODE_ADDRESSES
        ),
        pod_cidrs=tuple(cidr.network() for cidr in cidrs if cidr.text()),
    )


_READERS: dict[tuple[str, str], Callable[[_Field], KubernetesObject]] = {
    ("v1", "Service"): _service,
    ("v1", "Pod"): _pod,
    ("v1", "Node"): _node,
    ("discovery.k8s.io/v1", "EndpointSlice"): _endpoint_slice,
}


def _dotted(path: FieldPath) -> str:
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return dotted.removeprefix(".") or "it"


def _shown(value: object) -> str:
    """A value as messages quote it: in short."""
    if value is None:
        return "missing"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}…"
