"""The Kubernetes API as the helper uses it: a few requests, each with a time limit, answered by plain dicts.

The client library makes typed objects of everything it reads, which costs a millisecond and many kilobytes for
each; ours come from `sources.kubernetes_objects`, so requests are made without that. Errors of the library,
of HTTP and of the network leave here as one `ApiError`.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from node_helper.model import ObjectKey

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECT_TIMEOUT = 3.0
"""Seconds."""
ANSWER_TIMEOUT = 10.0
"""Seconds for an answer that is not a watch."""
SILENCE_TIMEOUT = 150.0
"""Seconds without a byte after which a watch is taken for dead: API servers send a bookmark each minute."""
WATCH_SECONDS = (300, 600)
"""How long a watch lasts before it is opened anew, chosen at random so that nodes do not do it together."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0
"""Seconds before a request that follows failed ones; doubled each time, with jitter."""
_FIELD_MANAGER = "service-tunnel"

# Requests that fail are told by a source's Problems, once; the library would log a traceback each time. What goes
# wrong in our own handlers it does log.
logging.getLogger("kubernetes.informer.informer").addFilter(lambda record: "informer handler" in str(record.msg))


class ApiError(Exception):
    """A request failed; the text is for people. `status` is HTTP's, 0 where there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """A connection to one API server."""

    def __init__(self, connection: client.ApiClient) -> None:
        self._core = client.CoreV1Api(connection)
        self._discovery = client.DiscoveryV1Api(connection)
        self.server = str(connection.configuration.host)

    @classmethod
    def connect(cls, kubeconfig: Path | None) -> Api:
        """By a kubeconfig file, or as a pod of the cluster where None. Raises ApiError."""
        settings = client.Configuration()
        try:
            if kubeconfig is None:
                config.load_incluster_config(client_configuration=settings)
            else:
                config.load_kube_config(str(kubeconfig), client_configuration=settings)
        except (config.ConfigException, OSError, ValueError, TypeError, KeyError) as error:
            where = "this is no pod with a service account" if kubeconfig is None else f"{kubeconfig} is no kubeconfig"
            raise ApiError(f"{where}: {error}") from error
        settings.retries = False  # whoever asks knows whether, and when, to ask again
        return cls(client.ApiClient(settings))

    def lists(self, kind: str, stop: threading.Event, field_selector: str = "") -> Callable[..., Any]:
        """The function by which an informer lists and watches all objects of a kind.

        It is called again at once after each failure, so it is the one that waits; `stop` ends the waiting.
        """
        method = {
            "Service": self._core.list_service_for_all_namespaces,
            "Pod": self._core.list_pod_for_all_namespaces,
            "Node": self._core.list_node,
            "EndpointSlice": self._discovery.list_endpoint_slice_for_all_namespaces,
        }[kind]
        pause = _Pause(stop)

        def listing(*, watch: bool = False, resource_version: str | None = None, _preload_content: bool = True) -> Any:
            """A list of plain objects, or the open answer of a watch.

            :rtype: object
            """
            pause.before()
            wanted: dict[str, Any] = {"_preload_content": False, "resource_version": resource_version}
            if field_selector:
                wanted["field_selector"] = field_selector
            if watch:
                lasts = random.randint(*WATCH_SECONDS)  # noqa: S311 - spreads requests
                wanted |= {"watch": True, "allow_watch_bookmarks": True, "timeout_seconds": lasts}
                answer = method(**wanted, _request_timeout=(CONNECT_TIMEOUT, SILENCE_TIMEOUT))
                pause.done()
                return answer
            answer = method(**wanted, _request_timeout=(CONNECT_TIMEOUT, ANSWER_TIMEOUT * 3))
            found = json.loads(answer.data)
            answer.release_conn()
            pause.done()
            version = found.get("metadata", {}).get("resourceVersion")
            return SimpleNamespace(items=found.get("items") or [], metadata=SimpleNamespace(resource_version=version))

        return listing

    def annotate_service(self, key: ObjectKey, version: str, annotations: Mapping[str, str | None]) -> None:
        """Sets annotations of a Service that is still of this resourceVersion; None takes one away.

        Through the status subresource, whose requests cannot change the spec. Raises ApiError: 409 where the
        Service has changed meanwhile.
        """
        body = {"metadata": {"resourceVersion": version, "annotations": dict(annotations)}}
        with _told(f"writing annotations of Service {key}"):
            self._core.patch_namespaced_service_status(
                key.name, key.namespace, body, field_manager=_FIELD_MANAGER,
                _content_type="application/merge-patch+json",
                _preload_content=False, _request_timeout=(CONNECT_TIMEOUT, ANSWER_TIMEOUT),
            ).release_conn()  # fmt: skip

    def create_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        """Raises ApiError: 409 where one of this name is there already."""
        with _told(f"creating an Event in {namespace}"):
            self._core.create_namespaced_event(
                namespace, dict(body), _preload_content=False, _request_timeout=(CONNECT_TIMEOUT, ANSWER_TIMEOUT)
            ).release_conn()


class _Pause:
    """Waits before a request, the longer the more of them failed one after the other."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._failed = -1

    def before(self) -> None:
        self._failed += 1
        if self._failed:
            longest = min(_FIRST_PAUSE * 2**self._failed, _LONGEST_PAUSE)
            self._stop.wait(longest * random.uniform(0.5, 1.0))  # noqa: S311 - spreads requests

    def done(self) -> None:
        self._failed = -1


def reason(error: BaseException) -> str:
    """What went wrong with a request, in one line."""
    if isinstance(error, ApiException):
        try:
            said = str(json.loads(error.body)["message"])
        except (TypeError, ValueError, KeyError):
            said = str(error.reason)
        return f"HTTP status {error.status}: {said}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        raise ApiError(f"{what}: {reason(error)}", error.status or 0) from error
    except (HTTPError, OSError, ValueError) as error:
        raise ApiError(f"{what}: {reason(error)}") from error
