"""The source of objects before an API server that misbehaves: it survives, asks seldom, ends with what is so."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node_helper import api as api_module
from node_helper.api import Api
from node_helper.backoff import Backoff
from node_helper.model import ObjectKey, Snapshot
from node_helper.settings import INGRESS, NODE
from node_helper.sources import kubernetes
from node_helper.sources.kubernetes import KubernetesSource
from tests import fake_api
from tests.fake_api import FakeApi, Fault

WEB = ObjectKey("shop", "web")
PATIENCE = float(os.environ.get("TEST_PATIENCE", "20"))


def service(name: str = "web", **annotations: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "shop", "name": name, "annotations": annotations},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80}]},
    }


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not so: {what}"
        time.sleep(0.005)


@pytest.fixture
def server() -> Iterator[FakeApi]:
    with FakeApi() as running:
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses and time limits a hundredth of what they are."""
    for name in ("FIRST_PAUSE", "LONGEST_PAUSE", "LASTED"):
        monkeypatch.setattr(api_module, name, getattr(api_module, name) / 100)
    for name, seconds in {"ANSWER_TIMEOUT": 0.1, "SILENCE_TIMEOUT": 1.0, "CONNECT_TIMEOUT": 0.5}.items():
        monkeypatch.setattr(api_module, name, seconds)
    monkeypatch.setattr(kubernetes, "_STANDS", 0.05)


class Followed:
    def __init__(self, server: FakeApi, folder: Path, roles: tuple[str, ...] = (INGRESS,)) -> None:
        self.source = KubernetesSource(Api.connect(server.kubeconfig(folder)), roles, "n1")

    def names(self) -> set[str]:
        snapshot = self.source.read()
        return set() if snapshot is None else {key.name for key in snapshot.services}

    def snapshot(self) -> Snapshot:
        found = self.source.read()
        assert found is not None
        return found

    def reasons(self) -> set[str]:
        return {problem.reason for problem in self.snapshot().problems}


@pytest.fixture
def follow(server: FakeApi, tmp_path: Path) -> Iterator[Callable[..., Followed]]:
    made: list[Followed] = []

    def start(*roles: str) -> Followed:
        made.append(Followed(server, tmp_path, roles or (INGRESS,)))
        return made[-1]

    yield start
    server.end_watches()
    for followed in made:
        followed.source.close()


ANY_TIME: dict[str, Fault] = {
    "429": fake_api.refuse(429, "TooManyRequests"),
    "500": fake_api.refuse(500, "InternalError"),
    "503": fake_api.refuse(503),
    "410": fake_api.refuse(410, "Gone"),
    "403": fake_api.refuse(403, "Forbidden"),
    "closed": fake_api.close,
    "hangs": fake_api.hang,
    "no list": fake_api.body([1, 2]),
    "null": fake_api.body(None),
    "a list of what": fake_api.body({"metadata": None, "items": 7}),
}
IN_A_WATCH: dict[str, Fault] = {
    "closed at once": fake_api.stream_and_close,
    "broken off": fake_api.stream_and_break,
    "ERROR 410": fake_api.stream_error(410, "Expired"),
    "ERROR 429": fake_api.stream_error(429),
    "ERROR 500": fake_api.stream_error(500),
    "ERROR of no shape": fake_api.stream({"type": "ERROR", "object": "what"}),
    "no event": fake_api.stream([1, 2]),
    "no object": fake_api.stream({"type": "ADDED"}),
    "a null": fake_api.stream({"type": "ADDED", "object": None}),
    "an object without metadata": fake_api.stream({"type": "MODIFIED", "object": {"metadata": None}}),
    "an object without a name": fake_api.stream({"type": "ADDED", "object": {"metadata": {"name": 7}}}),
    "no JSON": fake_api.stream(b"<html>\n"),
    "no UTF-8": fake_api.stream(b'{"type":"ADDED","object":{"metadata":{"name":"\xff\xfe"}}}\n'),
    "silence": fake_api.hang,
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", ANY_TIME.values(), ids=ANY_TIME.keys())
def test_a_list_that_fails_is_asked_for_again_and_then_followed(
    server: FakeApi, follow: Callable[..., Followed], fault: Fault
) -> None:
    server.faults["Service"] = deque([fault] * 3)
    server.put(service("web"))
    followed = follow()
    wait(lambda: followed.source.read() is not None, "listed")
    assert server.count("Service") == 4
    assert followed.names() == {"web"}
    server.put(service("more"))
    wait(lambda: followed.names() == {"web", "more"}, "the other")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", {**ANY_TIME, **IN_A_WATCH}.values(), ids=[*ANY_TIME, *IN_A_WATCH])
def test_a_watch_that_fails_loses_no_change(server: FakeApi, follow: Callable[..., Followed], fault: Fault) -> None:
    """Whatever happened while it could not watch, deletions too; without a request more than there must be."""
    server.put(service("old"))
    server.faults["Service watch"] = deque([fault] * 4)
    followed = follow()
    wait(lambda: server.count("Service watch") >= 2, "a second try")
    server.remove("Service", "shop", "old")
    server.put(service("new"))
    wait(lambda: followed.names() == {"new"} and followed.reasons() <= {"UnreadableObject"}, "what is so")
    assert server.count("Service watch") <= 6 and server.count("Service") <= 6


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "event", [{"type": "MODIFIED", "object": ["what"]}, {"type": 7}, {"type": "NEW", "object": {}}]
)
def test_an_event_that_cannot_be_understood_stops_nothing(
    server: FakeApi, follow: Callable[..., Followed], event: Any
) -> None:
    """Also where from the same version on the server tells it again."""
    server.put(service("old"))
    followed = follow()
    wait(lambda: server.count("Service watch") == 1, "watched")
    again = fake_api.stream(event)
    server.faults["Service watch"] = deque([again, again])
    server.send("Service", event)
    server.put(service("web"))
    wait(lambda: followed.names() == {"old", "web"}, "the one behind it")
    assert server.count("Service") <= 4


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("spec", [None, 7, "text", [], {"ports": 7}, {"ports": [{"port": "80"}]}, {"selector": [1]}])
def test_an_object_of_the_wrong_shape_costs_that_object_alone(
    server: FakeApi, follow: Callable[..., Followed], spec: Any
) -> None:
    server.put(service("web"))
    followed = follow()
    wait(lambda: followed.names() == {"web"}, "listed")
    server.put({**service("broken"), "spec": spec})
    server.put(service("more"))
    wait(lambda: "more" in followed.names(), "the one behind it")
    assert followed.reasons() <= {"UnreadableObject"}
    server.put(service("broken"))
    wait(lambda: followed.names() == {"web", "broken", "more"} and not followed.reasons(), "mended")


@pytest.mark.usefixtures("quick")
def test_what_a_list_holds_besides_objects_is_passed_over(server: FakeApi, follow: Callable[..., Followed]) -> None:
    web = server.put(service("web"))
    answer = {"metadata": {"resourceVersion": "101"}, "items": [None, 7, {}, {"metadata": {"name": 7}}, web]}
    server.faults["Service"] = deque([fake_api.body(answer)])
    followed = follow()
    wait(lambda: followed.names() == {"web"}, "the one that is good")


@pytest.mark.parametrize("fault", [fake_api.stream_and_close, fake_api.stream_error(500), fake_api.stream_error(429)])
def test_a_server_that_ends_each_watch_at_once_is_asked_seldom(
    server: FakeApi, follow: Callable[..., Followed], fault: Fault
) -> None:
    """With the pauses as they are: 0.2 to 0.4 s, 0.4 to 0.8 s, and so on: four in the first two or three seconds."""
    server.always["Service watch"] = fault
    follow()
    wait(lambda: server.count("Service watch") >= 4, "some tries")
    times = [asked.at for asked in server.asked if asked.watch and asked.kind == "Service"]
    assert times[1] - times[0] >= 0.2 and times[2] - times[1] >= 0.4 and times[3] - times[2] >= 0.8


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_away_is_told_and_the_last_copy_stays(
    server: FakeApi, follow: Callable[..., Followed]
) -> None:
    server.put(service("web"))
    followed = follow()
    wait(lambda: followed.names() == {"web"}, "listed")
    server.always["Service watch"] = fake_api.stream_error(500)
    server.end_watches()
    wait(lambda: followed.reasons() == {"ApiUnreachable"}, "told")
    asked = server.count("Service watch")
    wait(lambda: server.count("Service watch") > asked + 3, "more tries")
    assert followed.reasons() == {"ApiUnreachable"}, "not mended by watches that are taken and then fail"
    assert followed.names() == {"web"}
    del server.always["Service watch"]
    wait(lambda: not followed.reasons(), "mended")


@pytest.mark.usefixtures("quick")
def test_a_copy_that_is_too_old_is_listed_anew(server: FakeApi, follow: Callable[..., Followed]) -> None:
    server.put(service("web"))
    followed = follow()
    wait(lambda: server.count("Service watch") == 1, "watched")
    with server.lock:  # what happens now no watch will tell
        server.always["Service watch"] = fake_api.stream_and_close
        server.end_watches()
        server.remove("Service", "shop", "web")
        server.put(service("new"))
        server.forget_history()
        del server.always["Service watch"]
    wait(lambda: followed.names() == {"new"}, "listed anew")
    assert server.count("Service") == 2


@pytest.mark.usefixtures("quick")
def test_after_an_outage_it_is_not_current_before_a_list_is_taken_in(
    server: FakeApi, follow: Callable[..., Followed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes it for current by the answer alone stores a table of endpoints that are gone, in place of a newer."""
    current_at: list[bool] = []
    changed = KubernetesSource._changed

    def noted(source: KubernetesSource, kind: str, plain: dict[str, Any]) -> None:
        if plain["metadata"]["name"] == "new":
            current_at.append(source.current())
        changed(source, kind, plain)

    monkeypatch.setattr(KubernetesSource, "_changed", noted)
    server.put(service("web"))
    followed = follow()
    wait(lambda: followed.names() == {"web"} and followed.source.current(), "followed")
    server.always["Service watch"] = fake_api.stream_error(500)
    server.end_watches()
    wait(lambda: not followed.source.current(), "the outage")
    with server.lock:
        server.put(service("new"))
        server.forget_history()
        del server.always["Service watch"]
    wait(lambda: followed.names() == {"web", "new"} and followed.source.current(), "followed again")
    assert server.count("Service") == 2
    assert current_at == [False]


def test_endpoints_are_listed_anew_after_any_failure_of_their_watch(
    server: FakeApi, follow: Callable[..., Followed]
) -> None:
    """A watch that a server takes is no sign that it goes on from there: it may say so a quarter of a minute later."""
    followed = follow(INGRESS)
    wait(followed.source.current, "followed")
    lists = server.count("EndpointSlice")
    server.always["EndpointSlice watch"] = fake_api.refuse(500)
    server.end_watches()
    wait(lambda: not followed.source.current(), "the outage")
    del server.always["EndpointSlice watch"]
    wait(followed.source.current, "followed again")
    assert server.count("EndpointSlice") > lists


def test_watches_last_for_different_times_so_that_helpers_do_not_come_together(
    server: FakeApi, follow: Callable[..., Followed]
) -> None:
    follow(NODE, INGRESS)
    follow(NODE, INGRESS)
    wait(lambda: sum(asked.watch for asked in server.asked) == 8, "the watches")
    lasting = [asked.seconds for asked in server.asked if asked.watch]
    assert all(300 <= seconds <= 600 for seconds in lasting) and len(set(lasting)) > 1


def test_a_bookmark_moves_on_where_the_next_watch_begins(server: FakeApi, follow: Callable[..., Followed]) -> None:
    """The server sends them to those who ask for them."""
    follow()
    wait(lambda: server.count("Service watch") == 1, "watched")
    server.send("Service", {"type": "BOOKMARK", "object": {"kind": "Service", "metadata": {"resourceVersion": "777"}}})
    server.end_watches()
    wait(lambda: server.count("Service watch") == 2, "watched again")
    assert [asked.resource_version for asked in server.asked if asked.watch and asked.kind == "Service"][1] == "777"


def test_each_role_watches_what_it_needs(server: FakeApi, follow: Callable[..., Followed]) -> None:
    follow(NODE)
    wait(lambda: sum(asked.watch for asked in server.asked) == 3, "three watches")
    assert {asked.kind for asked in server.asked} == {"Service", "Node", "Pod"}
    follow(INGRESS)
    wait(lambda: sum(asked.watch for asked in server.asked) == 6, "six watches")
    assert server.count("Pod") == 1 and server.count("EndpointSlice") == 1


def test_pauses_grow_to_their_limit_and_no_number_of_failures_breaks_them() -> None:
    backoff = Backoff(0.4, 30.0)
    pauses = [backoff.pause() for _ in range(5000)]
    assert 0.2 <= pauses[0] <= 0.4
    assert all(15.0 <= pause <= 30.0 for pause in pauses[10:])
    backoff.reset()
    assert backoff.pause() <= 0.4


def test_a_name_that_cannot_be_resolved_is_as_a_server_that_is_away(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name server of the node is gone for a while."""
    import socket

    gone = threading.Event()
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **more: Any) -> Any:
        if host == "api.example.net":
            if gone.is_set():
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            host = "127.0.0.1"
        return resolve(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(api_module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(api_module, "LONGEST_PAUSE", 0.1)
    path = server.kubeconfig(tmp_path)
    path.write_text(path.read_text().replace("127.0.0.1", "api.example.net"))
    server.put(service("web"))
    gone.set()
    source = KubernetesSource(Api.connect(path), (INGRESS,), "n1")
    try:
        wait(lambda: "esolution" in source.trouble(), "the trouble")
        assert source.read() is None
        gone.clear()
        wait(lambda: source.read() is not None, "listed")
        gone.set()
        server.always["Service watch"] = fake_api.close  # or the connection would be used again
        server.end_watches()
        wait(lambda: "esolution" in source.trouble(), "the trouble")
        del server.always["Service watch"]
        gone.clear()
        server.put(service("more"))
        wait(lambda: ObjectKey("shop", "more") in (source.read() or Snapshot()).services, "followed")
    finally:
        server.end_watches()
        source.close()
