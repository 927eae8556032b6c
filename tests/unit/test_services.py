"""What annotated Services get: VIPs, mode, endpoints, tunnels of pods; and what is told about their faults."""

from __future__ import annotations

import time
from collections.abc import Mapping
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.tunnel import GRE, MODES, VXLAN_GPE, Remap, Tunnel
from node_helper.model import Endpoint, Node, ObjectKey, Pod, Problem, Service, ServicePort, Snapshot
from node_helper.service_index import ServiceIndex, remaps_for, tunnels_for_pod
from node_helper.services import Resolution, TunnelService, tunnel_services, usable_addresses
from node_helper.vips import VipRules, vip_range

ANY = VipRules()
VIP = "198.51.100.7"
WEB = ObjectKey("shop", "web")


def service(
    key: ObjectKey = WEB,
    tunnel: str | None = VIP,
    created: str = "2026-01-01T00:00:00Z",
    annotations: Mapping[str, str] | None = None,
    selector: Mapping[str, str] | None = None,
    ports: tuple[ServicePort, ...] = (),
    local_traffic_policy: bool = False,
    cluster_ips: tuple[str, ...] = (),
) -> Service:
    given_annotations = dict(annotations or {})
    if tunnel is not None:
        given_annotations["cmd.nu/tunnel"] = tunnel
    return Service(
        key=key,
        uid=f"uid of {key}",
        created=created,
        annotations=given_annotations,
        selector={"app": key.name} if selector is None else selector,
        ports=ports,
        local_traffic_policy=local_traffic_policy,
        cluster_ips=tuple(map(ip_address, cluster_ips)),
    )


def endpoint(
    address: str,
    pod: ObjectKey | None = None,
    ready: bool = True,
    serving: bool | None = None,
    terminating: bool = False,
) -> Endpoint:
    return Endpoint((ip_address(address),), pod, "worker", ready, ready if serving is None else serving, terminating)


def pod(
    name: str,
    address: str = "10.244.1.5",
    namespace: str = "shop",
    labels: Mapping[str, str] | None = None,
    ports: Mapping[str, int] | None = None,
    host_network: bool = False,
    finished: bool = False,
) -> Pod:
    return Pod(
        key=ObjectKey(namespace, name),
        uid=name,
        node="worker",
        labels={"app": "web"} if labels is None else labels,
        annotations={},
        ips=(ip_address(address),),
        host_network=host_network,
        ports=ports or {},
        finished=finished,
    )


NODE = Node("worker", {}, (ip_address("192.0.2.10"), ip_address("2001:db8:a::10")), (ip_network("10.244.1.0/24"),))


def snapshot(
    *services: Service,
    endpoints: Mapping[ObjectKey, tuple[Endpoint, ...]] | None = None,
    pods: tuple[Pod, ...] = (),
    nodes: tuple[Node, ...] = (NODE,),
) -> Snapshot:
    if endpoints is None:
        # Each Service has an endpoint, so that only what a test is about is told.
        endpoints = {s.key: (endpoint(f"10.244.9.{n}"),) for n, s in enumerate(services, 1)}
    return Snapshot(
        services={s.key: s for s in services},
        endpoints=endpoints,
        pods={p.key: p for p in pods},
        nodes={n.name: n for n in nodes},
    )


def resolve(*services: Service, rules: VipRules = ANY, pods: tuple[Pod, ...] = ()) -> Resolution:
    return tunnel_services(snapshot(*services, pods=pods), rules, VXLAN_GPE)


def vips(resolution: Resolution) -> dict[str, list[str]]:
    return {s.key.name: [str(vip) for vip in s.vips] for s in resolution.services}


def told(resolution: Resolution) -> list[tuple[str, str]]:
    return [(problem.key.name, problem.reason) for problem in resolution.problems]


def only(resolution: Resolution) -> tuple[TunnelService, Problem]:
    (served,), (problem,) = resolution.services, resolution.problems
    return served, problem


class TestVips:
    def test_a_service_without_annotation_is_not_served(self) -> None:
        assert resolve(service(tunnel=None)) == Resolution((), ())

    def test_a_list_is_trimmed_made_canonical_and_sorted(self) -> None:
        resolution = resolve(service(tunnel=" 2001:DB8:0::1 ,198.51.100.9,198.51.100.7 "))
        assert vips(resolution) == {"web": ["198.51.100.7", "198.51.100.9", "2001:db8::1"]}
        assert resolution.problems == ()

    @pytest.mark.parametrize("bad", ["198.51.100", "web.example", "198.51.100.8/32", "010.1.1.1", "fe80::1%eth0", ""])
    def test_a_bad_member_is_named_and_the_good_ones_are_served(self, bad: str) -> None:
        served, problem = only(resolve(service(tunnel=f"{VIP},{bad}")))
        assert [str(vip) for vip in served.vips] == [VIP]
        assert problem.reason == "InvalidVIP"
        assert "shop/web" in problem.message
        assert (repr(bad) if bad else "empty member") in problem.message

    def test_a_service_with_bad_members_only_is_not_served(self) -> None:
        resolution = resolve(service(tunnel="none"), service(ObjectKey("shop", "other"), "198.51.100.8"))
        assert vips(resolution) == {"other": ["198.51.100.8"]}
        assert told(resolution) == [("web", "InvalidVIP")]

    @pytest.mark.parametrize(("first", "second"), [(VIP, VIP), ("2001:db8::1", "2001:db8:0:0::1")])
    def test_an_address_named_twice_is_served_once(self, first: str, second: str) -> None:
        served, problem = only(resolve(service(tunnel=f"{first},{second}")))
        assert [str(vip) for vip in served.vips] == [first]
        assert problem.reason == "DuplicateVIP"

    @pytest.mark.parametrize(
        ("address", "why"),
        [
            ("0.0.0.0", "unspecified"),
            ("::", "unspecified"),
            ("127.0.0.1", "loopback"),
            ("::1", "loopback"),
            ("169.254.1.1", "link-local"),
            ("fe80::1", "link-local"),
            ("224.0.0.1", "multicast"),
            ("ff02::1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("0.1.2.3", "no unicast"),
            ("::198.51.100.7", "no unicast"),
            ("::ffff:198.51.100.7", "written as IPv6"),
            ("192.0.2.10", "node worker"),
            ("2001:db8:a::10", "node worker"),
            ("10.244.1.77", "10.244.1.0/24, which is for the pods of a node"),
            ("10.245.0.1", "10.245.0.0/16, which is for pods"),
            ("10.96.0.1", "10.96.0.0/12, which is for cluster IPs"),
            ("10.10.10.10", "cluster IP of Service shop/inner"),
            ("10.20.30.40", "pod shop/web-1"),
            ("10.20.30.50", "endpoint of shop/inner"),
        ],
    )
    def test_an_address_that_can_be_no_vip_is_refused(self, address: str, why: str) -> None:
        inner = service(ObjectKey("shop", "inner"), None, cluster_ips=("10.10.10.10",))
        rules = VipRules(pod_ranges=(ip_network("10.245.0.0/16"),), service_ranges=(ip_network("10.96.0.0/12"),))
        seen = snapshot(
            service(tunnel=f"{VIP},{address}"),
            inner,
            pods=(pod("web-1", "10.20.30.40"),),
            endpoints={WEB: (endpoint("10.244.9.1"),), inner.key: (endpoint("10.20.30.50"),)},
        )
        served, problem = only(tunnel_services(seen, rules, VXLAN_GPE))
        assert [str(vip) for vip in served.vips] == [VIP]
        assert problem.reason == "VIPNotAllowed"
        assert why in problem.message
        assert "shop/web" in problem.message

    def test_where_each_node_knows_its_own_pods_no_single_pod_takes_a_vip(self) -> None:
        """Or that pod's ingress node would say no while the others serve the VIP; ranges say no everywhere."""
        rules = VipRules((vip_range("10.20.0.0/16"),), True, (ip_network("10.20.99.0/24"),), (), every_pod_known=False)
        seen = snapshot(service(tunnel="10.20.30.40,10.20.99.1"), pods=(pod("web-1", "10.20.30.40"),))
        served, problem = only(tunnel_services(seen, rules, VXLAN_GPE))
        assert [str(vip) for vip in served.vips] == ["10.20.30.40"]
        assert "10.20.99.1" in problem.message
        elsewhere = snapshot(service(tunnel="10.20.30.40,10.20.99.1"))
        assert tunnel_services(elsewhere, rules, VXLAN_GPE).problems[0] == problem

    def test_the_address_of_a_finished_pod_is_free(self) -> None:
        assert vips(resolve(service(tunnel=VIP), pods=(pod("job", VIP, finished=True),))) == {"web": [VIP]}

    def test_the_older_service_keeps_a_vip_and_the_other_is_told(self) -> None:
        young = service(ObjectKey("a", "young"), f"{VIP},198.51.100.8", created="2026-02-01T00:00:00Z")
        old = service(ObjectKey("z", "old"), VIP, created="2026-01-01T00:00:00Z")
        resolution = resolve(young, old)
        assert vips(resolution) == {"old": [VIP], "young": ["198.51.100.8"]}
        assert told(resolution) == [("young", "VIPTaken")]
        assert "z/old" in resolution.problems[0].message
        assert vips(resolve(young)) == {"young": [VIP, "198.51.100.8"]}

    def test_of_two_services_of_one_age_the_first_by_name_has_the_vip(self) -> None:
        assert vips(resolve(service(ObjectKey("shop", "b")), service(ObjectKey("shop", "a")))) == {"a": [VIP]}

    def test_a_service_without_a_time_never_takes_from_one_with_a_time(self) -> None:
        by_hand = service(ObjectKey("a", "by-hand"), created="")
        assert vips(resolve(by_hand, service())) == {"web": [VIP]}

    def test_a_fault_in_the_mode_does_not_hand_the_vip_to_another(self) -> None:
        broken = service(annotations={"cmd.nu/tunnel-mode": "grre"}, created="2025-01-01T00:00:00Z")
        resolution = resolve(broken, service(ObjectKey("shop", "other")))
        assert resolution.services == ()
        assert told(resolution) == [("other", "VIPTaken"), ("web", "UnknownMode")]


class TestRanges:
    def test_a_source_that_needs_ranges_allows_nothing_without(self) -> None:
        resolution = resolve(service(), rules=VipRules(require_range=True))
        assert resolution.services == ()
        assert told(resolution) == [("web", "VIPNotAllowed")]

    def test_ranges_bound_what_may_be_a_vip(self) -> None:
        rules = VipRules(ranges=(vip_range("198.51.100.0/24"), vip_range("2001:db8::/64=shop, office")))
        resolution = resolve(
            service(tunnel=f"{VIP},203.0.113.1,2001:db8::1"),
            service(ObjectKey("lab", "web2"), "198.51.100.8,2001:db8::2"),
            rules=rules,
        )
        assert vips(resolution) == {"web": [VIP, "2001:db8::1"], "web2": ["198.51.100.8"]}
        assert [(p.key.name, p.message.split(": ")[0].split()[-1]) for p in resolution.problems] == [
            ("web2", "2001:db8::2"),
            ("web", "203.0.113.1"),
        ]

    def test_an_endpoint_slice_takes_no_vip_of_a_range_down(self) -> None:
        rogue = service(ObjectKey("lab", "rogue"), None)
        seen = snapshot(service(), rogue, endpoints={WEB: (endpoint("10.244.9.1"),), rogue.key: (endpoint(VIP),)})
        rules = VipRules(ranges=(vip_range("198.51.100.0/24"),))
        assert vips(tunnel_services(seen, rules, VXLAN_GPE)) == {"web": [VIP]}

    def test_an_endpoint_that_is_a_vip_gets_no_traffic(self) -> None:
        seen = snapshot(service(), endpoints={WEB: (endpoint("10.244.9.1"), endpoint(VIP))})
        rules = VipRules(ranges=(vip_range("198.51.100.0/24"),))
        served, problem = only(tunnel_services(seen, rules, VXLAN_GPE))
        assert served.usable == ("10.244.9.1",)
        assert problem.reason == "EndpointIsVIP"

    @pytest.mark.parametrize("text", ["", "198.51.100.1/24", "198.51.100.0/24=", "web=shop", "198.51.100.0/24= ,"])
    def test_a_malformed_range_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"CIDR|names no namespace"):
            vip_range(text)


class TestModeAndPolicy:
    @pytest.mark.parametrize("mode", MODES)
    def test_a_service_chooses_its_mode(self, mode: str) -> None:
        assert [s.mode for s in resolve(service(annotations={"cmd.nu/tunnel-mode": mode})).services] == [mode]

    def test_the_default_mode_is_the_operators(self) -> None:
        assert [s.mode for s in tunnel_services(snapshot(service()), ANY, GRE).services] == [GRE]
        with pytest.raises(ValueError, match="unknown mode 'ipip'"):
            tunnel_services(snapshot(), ANY, "ipip")

    @pytest.mark.parametrize(
        ("annotations", "reason"),
        [
            ({"cmd.nu/tunnel-mode": "ipip"}, "UnknownMode"),
            ({"cmd.nu/tunnel-mode": ""}, "UnknownMode"),
            ({"cmd.nu/tunnel-traffic-policy": "local"}, "UnknownTrafficPolicy"),
        ],
    )
    def test_a_service_with_an_unknown_choice_is_not_served_and_others_are(
        self, annotations: Mapping[str, str], reason: str
    ) -> None:
        resolution = resolve(service(annotations=annotations), service(ObjectKey("shop", "other"), "198.51.100.8"))
        assert vips(resolution) == {"other": ["198.51.100.8"]}
        assert told(resolution) == [("web", reason)]

    @pytest.mark.parametrize("of_service", [False, True])
    @pytest.mark.parametrize(("annotated", "local"), [(None, None), ("Cluster", False), ("Local", True)])
    def test_the_annotation_beats_the_services_own_traffic_policy(
        self, of_service: bool, annotated: str | None, local: bool | None
    ) -> None:
        annotations = {} if annotated is None else {"cmd.nu/tunnel-traffic-policy": annotated}
        (served,) = resolve(service(annotations=annotations, local_traffic_policy=of_service)).services
        assert served.local_policy == (of_service if local is None else local)


class TestEndpoints:
    def test_ready_endpoints_are_usable_and_terminating_ones_are_not(self) -> None:
        endpoints = (
            endpoint("10.244.9.1"),
            endpoint("10.244.9.2", ready=False),
            endpoint("10.244.9.3", ready=False, serving=True, terminating=True),
            endpoint("10.244.9.4", ready=True, terminating=True),
        )
        assert usable_addresses(endpoints) == ("10.244.9.1",)

    def test_with_all_endpoints_terminating_those_that_serve_are_used(self) -> None:
        endpoints = (
            endpoint("10.244.9.1", ready=False, serving=False, terminating=True),
            endpoint("10.244.9.2", ready=False, serving=True, terminating=True),
            endpoint("10.244.9.3", ready=False),
        )
        assert usable_addresses(endpoints) == ("10.244.9.2",)

    @pytest.mark.parametrize("endpoints", [(), (endpoint("10.244.9.1", ready=False),)])
    def test_a_service_without_usable_endpoints_is_told_and_still_served(self, endpoints: tuple[Endpoint, ...]) -> None:
        served, problem = only(tunnel_services(snapshot(service(), endpoints={WEB: endpoints}), ANY, VXLAN_GPE))
        assert served.usable == ()
        assert served.endpoints == endpoints
        assert problem.reason == "NoEndpoints"

    def test_pods_of_the_hosts_network_are_left_out(self) -> None:
        known, unknown = pod("known", "192.0.2.10", host_network=True), ObjectKey("shop", "unknown")
        seen = snapshot(
            service(),
            pods=(known,),
            endpoints={
                WEB: (
                    endpoint("10.244.9.1", ObjectKey("shop", "ordinary")),
                    endpoint("192.0.2.10", known.key),
                    endpoint("2001:db8:a::10", unknown),
                )
            },
        )
        served, problem = only(tunnel_services(seen, ANY, VXLAN_GPE))
        assert served.usable == ("10.244.9.1",)
        assert problem.reason == "HostNetworkPod"
        assert "shop/known, shop/unknown" in problem.message

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    @pytest.mark.parametrize(
        "before",
        [
            {"ready": False, "serving": True, "terminating": True},
            {"ready": False, "serving": False},
            {"ready": True},  # the slice is older than the end of the pod
        ],
    )
    def test_an_address_that_went_to_another_pod_is_one_endpoint_and_the_new_pods(
        self, before: Mapping[str, bool], order: tuple[int, int]
    ) -> None:
        old, new = ObjectKey("shop", "z-old"), pod("new", "10.244.9.1")
        entries = (endpoint("10.244.9.1", old, **before), endpoint("10.244.9.1", new.key))
        seen = snapshot(service(), pods=(new,), endpoints={WEB: tuple(entries[n] for n in order)})
        (served,) = tunnel_services(seen, ANY, VXLAN_GPE).services
        assert [entry.pod for entry in served.endpoints] == [new.key]
        assert served.usable == ("10.244.9.1",)

    def test_of_two_pods_with_one_address_a_finished_one_does_not_count(self) -> None:
        done, new = pod("a-done", "10.244.9.1", finished=True), pod("new", "10.244.9.1")
        entries = (endpoint("10.244.9.1", done.key), endpoint("10.244.9.1", new.key))
        seen = snapshot(service(), pods=(done, new), endpoints={WEB: entries})
        (served,) = tunnel_services(seen, ANY, VXLAN_GPE).services
        assert [entry.pod for entry in served.endpoints] == [new.key]

    def test_an_endpoint_without_pod_gets_traffic(self) -> None:
        seen = snapshot(service(selector={}), endpoints={WEB: (endpoint("203.0.113.5"),)})
        (served,) = tunnel_services(seen, ANY, VXLAN_GPE).services
        assert served.usable == ("203.0.113.5",)


class TestRemaps:
    @pytest.mark.parametrize(
        ("ports", "expected"),
        [
            ((ServicePort("", "tcp", 80, 80),), ()),
            ((ServicePort("", "tcp", 80, 8080),), (Remap("tcp", 80, 8080),)),
            ((ServicePort("", "tcp", 80, "http"),), (Remap("tcp", 80, 8080),)),
            ((ServicePort("", "tcp", 8080, "http"),), ()),
            ((ServicePort("", "tcp", 80, "absent"),), ()),
            (
                (ServicePort("a", "tcp", 53, 5353), ServicePort("b", "udp", 53, 5353)),
                (Remap("tcp", 53, 5353), Remap("udp", 53, 5353)),
            ),
            (
                (ServicePort("a", "tcp", 80, 8080), ServicePort("b", "tcp", 8080, 9090)),
                (Remap("tcp", 80, 8080), Remap("tcp", 8080, 9090)),
            ),
        ],
    )
    def test_ports_that_differ_are_remapped(self, ports: tuple[ServicePort, ...], expected: tuple[Remap, ...]) -> None:
        resolution = resolve(service(ports=ports))
        assert remaps_for(resolution.services[0], pod("web-1", ports={"http": 8080})) == expected
        assert resolution.problems == ()

    @pytest.mark.parametrize(
        ("ports", "named"),
        [
            ((ServicePort("a", "tcp", 80, 8080), ServicePort("b", "tcp", 81, 8080)), "tcp ports 80, 81"),
            ((ServicePort("a", "tcp", 80, 8080), ServicePort("b", "tcp", 8080, 8080)), "tcp ports 80, 8080"),
            ((ServicePort("a", "tcp", 80, 8080), ServicePort("b", "tcp", 80, 8081)), "tcp port 80 leads to 8080, 8081"),
            ((ServicePort("a", "udp", 80, "http"), ServicePort("b", "udp", 81, 8080)), "udp ports 80, 81"),
        ],
    )
    def test_ports_that_replies_could_not_tell_apart_are_not_remapped(
        self, ports: tuple[ServicePort, ...], named: str
    ) -> None:
        web = pod("web-1", ports={"http": 8080})
        seen = snapshot(
            service(ports=(*ports, ServicePort("c", "tcp", 443, 8443))),
            pods=(web,),
            endpoints={WEB: (endpoint("10.244.9.1", web.key),)},
        )
        served, problem = only(tunnel_services(seen, ANY, VXLAN_GPE))
        assert remaps_for(served, web) == (Remap("tcp", 443, 8443),)
        assert problem.reason == "AmbiguousPorts"
        assert named in problem.message


class TestTunnelsOfPods:
    def test_a_selected_pod_has_the_services_tunnel(self) -> None:
        resolution = resolve(
            service(tunnel=f"2001:db8::1,{VIP}", ports=(ServicePort("", "tcp", 80, 8080),)),
            service(ObjectKey("shop", "again"), "198.51.100.8", selector={"app": "web"}),
        )
        assert tunnels_for_pod(resolution.services, pod("web-1")) == (
            Tunnel(("198.51.100.8",), VXLAN_GPE),
            Tunnel((VIP, "2001:db8::1"), VXLAN_GPE, (Remap("tcp", 80, 8080),)),
        )

    @pytest.mark.parametrize(
        "other",
        [
            pod("web-1", labels={"app": "shop"}),
            pod("web-1", labels={}),
            pod("web-1", namespace="office"),
            pod("web-1", host_network=True),
            pod("web-1", finished=True),
        ],
    )
    def test_other_pods_have_none(self, other: Pod) -> None:
        selecting = service(selector={"app": "web"})
        assert tunnels_for_pod(resolve(selecting).services, other) == ()

    def test_all_labels_of_a_selector_must_match(self) -> None:
        services = resolve(service(selector={"app": "web", "tier": "front"})).services
        assert tunnels_for_pod(services, pod("web-1", labels={"app": "web"})) == ()
        assert tunnels_for_pod(services, pod("web-1", labels={"app": "web", "tier": "front", "x": "y"})) != ()

    def test_a_service_without_selector_finds_its_pods_by_its_endpoints(self) -> None:
        web = pod("web-1")
        seen = snapshot(
            service(selector={}), endpoints={WEB: (endpoint("10.244.1.5", web.key), endpoint("10.244.1.6"))}
        )
        services = tunnel_services(seen, ANY, VXLAN_GPE).services
        assert tunnels_for_pod(services, web) == (Tunnel((VIP,), VXLAN_GPE),)
        assert tunnels_for_pod(services, pod("web-2")) == ()

    def test_an_endpoint_slice_gives_no_vip_to_another_namespaces_pod(self) -> None:
        other = pod("web-1", namespace="office")
        seen = snapshot(service(selector={}), endpoints={WEB: (endpoint("10.244.1.5", other.key),)})
        assert tunnels_for_pod(tunnel_services(seen, ANY, VXLAN_GPE).services, other) == ()


@given(st.permutations(range(6)))
def test_the_order_of_objects_does_not_matter(order: list[int]) -> None:
    services = [
        service(ObjectKey("shop", f"s{n}"), f"198.51.100.{n // 2},bad", created="", selector={"app": "web"})
        for n in range(6)
    ]
    shuffled = resolve(*[services[n] for n in order])
    ordered = resolve(*services)
    assert told(shuffled) == told(ordered)
    assert vips(shuffled) == vips(ordered)
    assert tunnels_for_pod(shuffled.services, pod("web-1")) == tunnels_for_pod(ordered.services, pod("web-1"))


def test_two_thousand_services_take_well_under_a_second() -> None:
    services = [
        service(
            ObjectKey("shop", f"s{n}"), f"203.0.{n // 250}.{n % 250 + 1}", ports=(ServicePort("", "tcp", 80, 8080),)
        )
        for n in range(2000)
    ]
    nodes = tuple(
        Node(f"n{n}", {}, (ip_address(f"192.0.{n // 250}.{n % 250}"),), (ip_network(f"10.{n // 250}.{n % 250}.0/24"),))
        for n in range(1000)
    )
    endpoints = {
        s.key: tuple(endpoint(f"10.{n % 4}.{n // 8}.{k}", ObjectKey("shop", f"s{n}-{k}")) for k in range(10))
        for n, s in enumerate(services)
    }
    seen = snapshot(*services, nodes=nodes, endpoints=endpoints)
    start = time.process_time()
    index = ServiceIndex(tunnel_services(seen, ANY, VXLAN_GPE).services)
    tunnels = [tunnels_for_pod(index, pod(f"p{n}", labels={"app": f"s{n}"})) for n in range(200)]
    assert time.process_time() - start < 1.5
    assert all(len(own) == 1 for own in tunnels)
