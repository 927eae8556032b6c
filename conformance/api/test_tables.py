"""Bucket tables in Services, written by several ingress helpers at once, and by users and tools in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.netns import entered
from conformance.api.control_plane import API_PORT, ControlPlane
from conformance.api.test_source import WEB, endpoint_slice, service
from node_helper.api import Api
from node_helper.bucket_store import FolderBucketStore
from node_helper.bucket_text import decode, encode
from node_helper.buckets import BucketTable
from node_helper.services import TUNNEL_BUCKETS
from tests.table_keeper import Keeper

ANNOTATED = {"cmd.nu/tunnel": "198.51.100.1"}
SIZE = 256
PATIENCE = 60.0
"""Seconds; after an outage helpers may ask again as late as in half a minute."""
AWAY = 60.0
"""Seconds of an outage."""


def keeper(control: ControlPlane, state: Path, size: int = SIZE) -> Keeper:
    with entered(control.host.netns()):
        return Keeper(lambda: Api.connect(control.kubeconfig("ingress")), state, size)


class Cluster:
    """Three keepers before one Service."""

    def __init__(self, control: ControlPlane, keepers: list[Keeper]) -> None:
        self.control = control
        self.keepers = keepers

    def writes(self) -> int:
        return sum(keeper.written for keeper in self.keepers)

    def stored(self) -> BucketTable | None:
        found = self.control.get("service", "web")
        text = found["metadata"].get("annotations", {}).get(TUNNEL_BUCKETS)
        return None if text is None else decode(text, found["metadata"]["uid"])

    def stored_text(self) -> str | None:
        found: str | None = self.control.get("service", "web")["metadata"].get("annotations", {}).get(TUNNEL_BUCKETS)
        return found

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            tables = [keeper.tables.get(WEB) for keeper in self.keepers]
            assert time.monotonic() < deadline, f"{what}: not so after {seconds} s: {tables}"
            time.sleep(0.02)

    def wait_converged(self, *endpoints: str) -> BucketTable:
        """All have the stored table, and it has just these endpoints."""

        def converged() -> bool:
            tables = [keeper.tables.get(WEB) for keeper in self.keepers]
            first = tables[0]
            return first is not None and set(first.endpoints) == set(endpoints) and all(t == first for t in tables)

        self.wait(converged, f"tables with {', '.join(endpoints)}")
        table = self.keepers[0].tables.get(WEB)
        assert table is not None and table == self.stored()
        return table


@contextmanager
def keepers(control: ControlPlane, folder: Path, count: int = 3) -> Iterator[Cluster]:
    with ExitStack() as stack:
        made = []
        for number in range(count):
            made.append(keeper(control, folder / str(number)))
            stack.callback(made[-1].close)
        yield Cluster(control, made)


@pytest.fixture
def cluster(control: ControlPlane, tmp_path: Path) -> Iterator[Cluster]:
    control.apply(service(**ANNOTATED), endpoint_slice("web-1", "10.244.0.5", "10.244.0.6"))
    with keepers(control, tmp_path) as made:
        made.wait_converged("10.244.0.5", "10.244.0.6")
        yield made


def owners(table: BucketTable) -> list[str | None]:
    return [table.owner(bucket) for bucket in range(table.size)]


def test_however_many_helpers_race_a_change_costs_two_writes(control: ControlPlane, tmp_path: Path) -> None:
    control.apply(service(**ANNOTATED), endpoint_slice("web-1", "10.244.0.5", "10.244.0.6"))
    with keepers(control, tmp_path, 12) as many:
        many.wait_converged("10.244.0.5", "10.244.0.6")
        assert many.writes() <= 2
        for addresses in (("10.244.0.5", "10.244.0.6", "10.244.0.7"), ("10.244.0.6", "10.244.0.7")):
            writes = many.writes()
            control.apply(endpoint_slice("web-1", *addresses))
            many.wait_converged(*addresses)
            assert many.writes() - writes <= 2


def test_helpers_that_race_agree_after_few_writes(cluster: Cluster) -> None:
    """At most two writes for a change; no bucket moves that need not."""
    for number in range(7, 12):
        before, writes = cluster.stored(), cluster.writes()
        addresses = [f"10.244.0.{last}" for last in range(5, number + 1)]
        cluster.control.apply(endpoint_slice("web-1", *addresses))
        after = cluster.wait_converged(*addresses)
        assert before is not None
        assert cluster.writes() - writes <= 2
        moved = [now for was, now in zip(owners(before), owners(after), strict=True) if was != now]
        assert set(moved) == {addresses[-1]}
        assert len(moved) <= SIZE // len(addresses) + 1


def test_removals_are_stored_with_few_writes_too(cluster: Cluster) -> None:
    """And take effect without them: the others' buckets stay where they are, whatever is stored when."""
    addresses = [f"10.244.0.{last}" for last in range(5, 11)]
    cluster.control.apply(endpoint_slice("web-1", *addresses))
    before = cluster.wait_converged(*addresses)
    while len(addresses) > 2:
        writes = cluster.writes()
        gone = addresses.pop()
        cluster.control.apply(endpoint_slice("web-1", *addresses))
        after = cluster.wait_converged(*addresses)
        assert cluster.writes() - writes <= 2
        assert {was for was, now in zip(owners(before), owners(after), strict=True) if was != now} == {gone}
        before = after


def test_all_helpers_together_write_about_once_a_second(cluster: Cluster) -> None:
    """However fast the endpoints come and go; seen from the API server: each write is another resourceVersion."""
    writes, began = cluster.writes(), time.monotonic()
    last = 0
    while time.monotonic() < began + 5.0:
        last += 1
        cluster.control.apply(endpoint_slice("web-1", *(f"10.244.1.{n}" for n in range(1, 3 + last % 4))))
    cluster.control.apply(endpoint_slice("web-1", "10.244.0.5", "10.244.0.6"))
    cluster.wait_converged("10.244.0.5", "10.244.0.6")
    seconds = time.monotonic() - began
    assert last > seconds, "more changes than writes are allowed"
    assert cluster.writes() - writes <= 2 + 1.5 * seconds


def test_another_number_of_buckets_is_stored_once_and_moves_next_to_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """One helper is told of more; the others, which have fewer, leave it at that."""
    before, writes = cluster.stored(), cluster.writes()
    assert before is not None
    more = keeper(cluster.control, tmp_path / "more", 2 * SIZE)
    try:
        cluster.wait(lambda: (cluster.stored() or before).size == 2 * SIZE, "the larger table")
        after = cluster.stored()
        assert after is not None
        moved = sum(after.owner(bucket) != before.owner(bucket // 2) for bucket in range(after.size))
        assert moved <= 2
        cluster.wait(lambda: all(k.reasons() == {"BucketCountDiffers"} for k in cluster.keepers), "the problem")
        assert all(k.tables[WEB].size == SIZE for k in cluster.keepers)
        assert cluster.writes() + more.written - writes <= 2
    finally:
        more.close()


def test_more_endpoints_than_buckets_and_the_largest_table(control: ControlPlane, tmp_path: Path) -> None:
    """The excess is told; and 4,096 buckets with 300 endpoints are far below what annotations may hold (256 KiB)."""
    crowd = [f"10.244.{n // 200}.{n % 200 + 1}" for n in range(300)]
    control.apply(service(**ANNOTATED), endpoint_slice("web-1", *crowd))
    small = keeper(control, tmp_path / "small", 256)
    try:
        one = Cluster(control, [small])
        table = one.wait_converged(*crowd)
        assert small.reasons() == {"TooFewBuckets"} and "44 get no traffic" in small.problems[0].message
        assert len(set(owners(table))) == 256
    finally:
        small.close()
    large = keeper(control, tmp_path / "large", 4096)
    try:
        one = Cluster(control, [large])
        one.wait(lambda: (one.stored() or table).size == 4096, "the largest table")
        assert len(one.stored_text() or "") < 32768
        largest = one.wait_converged(*crowd)
        loads = [owners(largest).count(address) for address in crowd]
        assert min(loads) == 13 and max(loads) == 14
        assert large.reasons() == set()
    finally:
        large.close()


def test_a_fresh_helper_with_an_empty_state_folder_reads_the_same_table(cluster: Cluster, tmp_path: Path) -> None:
    before, writes = cluster.stored(), cluster.writes()
    fresh = keeper(cluster.control, tmp_path / "fresh")
    try:
        cluster.wait(lambda: fresh.tables.get(WEB) == before, "the fresh helper's table")
        assert fresh.written == 0
    finally:
        fresh.close()
    assert cluster.writes() == writes


@pytest.mark.parametrize("text", [None, "", "rubbish", "{}"], ids=["deleted", "empty", "rubbish", "no table"])
def test_a_table_that_someone_spoils_is_put_back(cluster: Cluster, text: str | None) -> None:
    before = cluster.stored()
    patch: dict[str, Any] = {"metadata": {"annotations": {TUNNEL_BUCKETS: text}}}
    assert not cluster.control.patch_service_status("web", patch)
    cluster.wait(lambda: cluster.stored_text() not in (None, text), "a table")
    assert cluster.wait_converged("10.244.0.5", "10.244.0.6") == before


def test_a_table_of_a_newer_helper_is_left_alone(cluster: Cluster) -> None:
    before, newer = cluster.keepers[0].tables[WEB], '{"v":99,"what":"ever"}'
    patch = {"metadata": {"annotations": {TUNNEL_BUCKETS: newer}}}
    assert not cluster.control.patch_service_status("web", patch)
    cluster.wait(lambda: all("NewerBucketTable" in k.ever for k in cluster.keepers), "the problem")
    cluster.control.apply(endpoint_slice("web-2", "10.244.0.9"))
    time.sleep(1.0)
    assert cluster.stored_text() == newer
    assert all(set(k.tables[WEB].endpoints) >= set(before.endpoints) for k in cluster.keepers)


def test_applying_the_users_own_yaml_again_changes_no_table(cluster: Cluster) -> None:
    """Client-side apply, server-side apply and `replace`; only the last takes the annotation off, and it comes back."""
    before = cluster.stored()
    cluster.control.kubectl("apply", "-f", "-", objects=[service(**ANNOTATED)])
    cluster.control.apply(service(**ANNOTATED))
    assert cluster.stored() == before
    cluster.control.kubectl("replace", "-f", "-", objects=[service(**ANNOTATED)])
    cluster.wait(lambda: cluster.stored_text() is not None, "a table")
    assert cluster.wait_converged("10.244.0.5", "10.244.0.6") == before


def test_a_table_copied_with_the_yaml_of_another_service_is_not_believed(cluster: Cluster) -> None:
    found = cluster.control.get("service", "web")
    text = found["metadata"]["annotations"][TUNNEL_BUCKETS]
    cluster.control.apply(service("copy", **{"cmd.nu/tunnel": "198.51.100.2", TUNNEL_BUCKETS: text}))
    slices = endpoint_slice("copy-1", "10.244.0.50")
    slices["metadata"]["labels"]["kubernetes.io/service-name"] = "copy"
    cluster.control.apply(slices)

    def own() -> bool:
        made = cluster.control.get("service", "copy")
        table = made["metadata"]["annotations"][TUNNEL_BUCKETS]
        return bool(table != text and decode(table, made["metadata"]["uid"]).endpoints == ("10.244.0.50",))

    cluster.wait(own, "the copy's own table")


@pytest.mark.timeout(300)
def test_endpoints_change_while_the_api_server_is_away_for_a_minute(cluster: Cluster, tmp_path: Path) -> None:
    """Another server, of which the helpers do not know, takes the changes meanwhile.

    They go on with what was stored, also by the time that they ask as seldom as they ever do. Afterwards all agree,
    with one that began meanwhile, by few writes, and no bucket has moved that need not.
    """
    before = cluster.stored()
    assert before is not None
    cluster.control.stop("kube-apiserver", kill=True)
    cluster.wait(lambda: all(k.source.trouble() for k in cluster.keepers), "the trouble")
    began, writes = time.monotonic(), cluster.writes()
    cluster.keepers[0].close()
    copied = FolderBucketStore(tmp_path / "0").read(WEB)
    assert copied is not None and decode(copied, before.uid) == before
    fresh = keeper(cluster.control, tmp_path / "0")
    try:
        cluster.control.start_api(port=API_PORT + 1)
        cluster.control.apply(endpoint_slice("web-1", "10.244.0.6", "10.244.0.7"))
        cluster.wait(lambda: time.monotonic() - began > AWAY, "the end of the outage", 2 * AWAY)
        assert cluster.stored() == before, "nobody could write"
        assert all(k.tables[WEB] == before for k in cluster.keepers)
        assert fresh.looks == 0 and fresh.source.trouble()
        cluster.control.stop("kube-apiserver")
        cluster.control.start_api()
        cluster.keepers[0] = fresh
        after = cluster.wait_converged("10.244.0.6", "10.244.0.7")
        assert cluster.writes() - writes <= 2
        moved = {was for was, now in zip(owners(before), owners(after), strict=True) if was != now}
        assert moved == {"10.244.0.5"}
    finally:
        fresh.close()


def test_a_table_that_someone_edits_by_hand_is_balanced_again_by_few_writes(cluster: Cluster) -> None:
    """All of it to one endpoint, in a form that can be read: what was edited counts, so most of it stays so."""
    before, writes = cluster.stored(), cluster.writes()
    assert before is not None
    edited = replace(before, owners=(0,) * before.size)
    assert not cluster.control.patch_service_status(
        "web", {"metadata": {"annotations": {TUNNEL_BUCKETS: encode(edited)}}}
    )
    cluster.wait(lambda: cluster.stored() not in (before, edited), "another table")
    after = cluster.wait_converged("10.244.0.5", "10.244.0.6")
    assert cluster.writes() - writes <= 2
    assert sorted(owners(after).count(address) for address in after.endpoints) == [SIZE // 2, SIZE // 2]
