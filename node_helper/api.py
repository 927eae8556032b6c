"""The Kubernetes API as the helper uses it: a few requests, each with a time limit, answered by plain dicts.

The client library makes typed objects of everything it reads, which costs a millisecond and many kilobytes for
each; ours come from `sources.kubernetes_objects`, so requests are made without that. Errors of the library,
of HTTP and of the network leave here as one `ApiError`.
"""

from __future__ import annotations

import json
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError, MaxRetryError

from node_helper.backoff import Backoff
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
FIRST_PAUSE, LONGEST_PAUSE = 0.4, 30.0
"""Seconds before a request that follows failed ones; doubled each time, with jitter."""
LASTED = 10.0
"""Seconds after which a watch that ends has done its work: the next is opened at once."""
GONE = 410
_IDENTITY = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>: | at 0x[0-9a-f]+")
"""What makes the same error another text each time."""
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

    def lists(self, kind: str, stop: threading.Event, field_selector: str = "") -> Listing:
        """What lists and watches all objects of a kind for an informer; see `Listing`."""
        method = {
            "Service": self._core.list_service_for_all_namespaces,
            "Pod": self._core.list_pod_for_all_namespaces,
            "Node": self._core.list_node,
            "EndpointSlice": self._discovery.list_endpoint_slice_for_all_namespaces,
        }[kind]
        return Listing(method, field_selector, stop)

    def annotate_service(self, key: ObjectKey, version: str, annotations: Mapping[str, str | None]) -> None:
        """Sets annotations of a Service that is still of this resourceVersion; None takes one away.

        Through the status subresource, whose requests cannot change the spec. Raises ApiError: 409 where the
        Service has changed meanwhile.
        """
        body = {"metadata": {"resourceVersion": version, "annotations": dict(annotations)}}
        with _told(f"writing annotations of Service {key}"):
            answer = self._core.patch_namespaced_service_status(
                key.name, key.namespace, body, field_manager=_FIELD_MANAGER,
                _content_type="application/merge-patch+json",
                _preload_content=False, _request_timeout=(CONNECT_TIMEOUT, ANSWER_TIMEOUT),
            )  # fmt: skip
            answer.drain_conn()

    def create_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        """Raises ApiError: 409 where one of this name is there already."""
        with _told(f"creating an Event in {namespace}"):
            answer = self._core.create_namespaced_event(
                namespace, dict(body), _preload_content=False, _request_timeout=(CONNECT_TIMEOUT, ANSWER_TIMEOUT)
            )
            answer.drain_conn()  # or the next answer of this connection would begin with the rest of this one


class Listing:
    """Lists and watches the objects of one kind, as an informer wants it.

    An informer calls again at once after whatever failed, so this is what waits. It waits longer each time until a
    watch has lasted: a server that takes each request, and then closes the stream or sends an error in it, is no better
    than one that refuses.
    """

    def __init__(self, method: Callable[..., Any], field_selector: str, stop: threading.Event) -> None:
        """`stop` ends the waiting."""
        self._method = method
        self._selected = {"field_selector": field_selector} if field_selector else {}
        self._stop = stop
        # Of their own: after an outage the first watch may be answered with 410, and then the list is to come at once.
        self._list_backoff, self._watch_backoff = (Backoff(FIRST_PAUSE, LONGEST_PAUSE) for _ in range(2))
        self._well = True
        """Whether the last request was answered with a list, which is no failure, though no sign of health either."""
        self._watched_since: float | None = None
        self._anew = False

    def begin_anew(self) -> None:
        """Lists before the next watch: what this one told could not be understood, and would be told again."""
        self._anew = True

    def __call__(
        self, *, watch: bool = False, resource_version: str | None = None, _preload_content: bool = True
    ) -> Any:
        """A list of plain objects, or the open answer of a watch.

        :rtype: object
        """
        self._wait(self._watch_backoff if watch else self._list_backoff)
        wanted: dict[str, Any] = {"_preload_content": False, "resource_version": resource_version, **self._selected}
        if not watch:
            return self._list(wanted)
        if self._anew:
            self._anew = False
            raise ApiException(status=GONE, reason="what the watch told could not be understood")
        lasts = random.randint(*WATCH_SECONDS)  # noqa: S311 - spreads requests
        wanted |= {"watch": True, "allow_watch_bookmarks": True, "timeout_seconds": lasts}
        answer = self._method(**wanted, _request_timeout=(CONNECT_TIMEOUT, SILENCE_TIMEOUT))
        self._watched_since = time.monotonic()
        return answer

    def _wait(self, backoff: Backoff) -> None:
        since, self._watched_since = self._watched_since, None
        if since is not None and time.monotonic() - since >= LASTED:
            self._list_backoff.reset()
            self._watch_backoff.reset()
        elif not self._well:
            self._stop.wait(backoff.pause())
        self._well = False

    def _list(self, wanted: dict[str, Any]) -> SimpleNamespace:
        answer = self._method(**wanted, _request_timeout=(CONNECT_TIMEOUT, ANSWER_TIMEOUT * 3))
        try:
            found = json.loads(answer.data)
            version = found["metadata"]["resourceVersion"]
            items = [item for item in found.get("items") or () if is_named(item)]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the answer is no list of objects: {type(error).__name__}: {error}") from None
        finally:
            answer.release_conn()
        self._well = True
        return SimpleNamespace(items=items, metadata=SimpleNamespace(resource_version=version))


def is_named(item: object) -> bool:
    """Whether an object says which it is; one that does not can be neither used nor followed."""
    metadata = item.get("metadata") if isinstance(item, dict) else None
    if not isinstance(metadata, dict):
        return False
    return isinstance(metadata.get("name"), str) and isinstance(metadata.get("namespace"), str | None)


def reason(error: BaseException) -> str:
    """What went wrong with a request, in one line."""
    if isinstance(error, ApiException):
        try:
            said = str(json.loads(error.body)["message"])
        except (TypeError, ValueError, KeyError):
            said = str(error.reason)
        return f"HTTP status {error.status}: {said}"
    if isinstance(error, MaxRetryError) and error.reason is not None:
        return reason(error.reason)  # of which the rest says nothing but that there were no retries
    said = _IDENTITY.sub("", str(error))
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        raise ApiError(f"{what}: {reason(error)}", error.status or 0) from error
    except (HTTPError, OSError, ValueError) as error:
        raise ApiError(f"{what}: {reason(error)}") from error
