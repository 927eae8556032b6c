"""The plots of benchmarks: well-formed, and every point where its numbers say."""

from __future__ import annotations

from xml.etree import ElementTree

from tests.bench.chart import HEIGHT, WIDTH, Panel, svg
from tests.bench.scaling import grown

SVG = "{http://www.w3.org/2000/svg}"
PANELS = (
    Panel(
        "VIPs",
        "VIPs <of a node>",
        {"a removal, ms": [(100, 10), (1000, 100)], "start-up, ms": [(100, 100), (1000, 1000)]},
    ),
    Panel("Buckets", "buckets", {"a removal, ms": [(64, 20), (256, 20)]}),
)


def test_a_plot_is_well_formed_and_has_a_panel_for_each() -> None:
    tree = ElementTree.fromstring(svg(PANELS, "a & b"))
    assert tree.get("width") == str(2 * WIDTH)
    assert len(tree.findall(f"{SVG}g")) == 2
    texts = ["".join(text.itertext()) for text in tree.iter(f"{SVG}text")]
    assert {"VIPs", "VIPs <of a node>", "a & b", "■ start-up, ms", "1000"} <= set(texts)


def test_points_are_where_their_logarithms_say() -> None:
    panel = ElementTree.fromstring(svg(PANELS, ""))[1]
    spots = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in panel.iter(f"{SVG}circle")]
    removal, start = spots[:2], spots[2:]
    assert removal[0][0] == start[0][0] < removal[1][0] == start[1][0] <= WIDTH
    assert removal[1][1] == start[0][1], "100 ms at either place are equally high"
    assert round(removal[0][1] - removal[1][1], 1) == round(start[0][1] - start[1][1], 1) > 0
    assert all(0 < y < HEIGHT for _, y in spots)


def test_one_number_of_a_size_grows_at_a_time() -> None:
    assert grown((300, 256, 5), 1, (64, 256)) == [(300, 64, 5), (300, 256, 5)]
    assert grown((300, 256, 5), 2, (2,)) == [(300, 256, 2)]
