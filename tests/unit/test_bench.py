"""The benchmark's own arithmetic and choices; what it measures is run once in the kernel part."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import pytest

from tests.bench import spawning
from tests.bench.figures import Figure, alone, as_json, as_table, paired
from tests.bench.registry import UnknownBenchmark, chosen, names

CONTRACT = ["name", "value", "unit", "peer", "ratio", "low", "high", "runs"]


def test_the_ratio_is_the_median_of_the_pairs_ratios_not_the_ratio_of_medians() -> None:
    # A slow moment hits both of a pair alike: the third pair is as good as the first.
    figure = paired("start", "ms", [10, 30, 100, 10, 12], "tuning", [5, 10, 50, 4, 6])
    assert figure == Figure("start", 12, "ms", "tuning", 2.0, 2.0, 2.5, 5)


def test_a_figure_without_a_peer_has_its_own_spread_and_no_ratio() -> None:
    assert alone("memory", "MiB", [4, 1, 3, 2, 5]) == Figure("memory", 3, "MiB", "", None, 2, 4, 5)


def test_pairs_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired("start", "ms", [1, 2, 3], "tuning", [1, 2])


def test_figures_have_four_digits_whatever_their_size() -> None:
    assert alone("memory", "B", [1234567, 1234567]).value == 1235000
    assert alone("start", "s", [0.000123456, 0.000123456]).value == 0.0001235


def test_the_json_is_a_list_of_objects_with_the_keys_of_the_contract() -> None:
    figures = [alone("memory", "MiB", [1, 2]), paired("start", "ms", [1, 2], "tuning", [1, 1])]
    written = json.loads(as_json(figures))
    assert [list(entry) for entry in written] == [CONTRACT, CONTRACT]
    assert written == [asdict(figure) for figure in figures]


def test_the_table_has_a_line_for_each_figure_with_its_peer() -> None:
    lines = as_table([alone("memory", "MiB", [1, 2]), paired("start", "ms", [1, 2], "tuning", [1, 1])]).splitlines()
    assert [line.split()[0] for line in lines] == ["name", "memory", "start"]
    assert lines[2].split() == ["start", "1.50", "ms", "1.50", "1.25", "–", "1.75", "tuning", "2"]
    assert "tuning" not in lines[1]


def test_without_a_name_everything_is_measured_and_each_name_once() -> None:
    everything = [name for _, wanted in chosen([]) for name in wanted]
    assert everything == list(names())
    assert len(set(everything)) == sum(len(subject.FIGURES) for subject, _ in chosen([]))


def test_a_pattern_chooses_and_the_order_stays() -> None:
    ((_, wanted),) = chosen(["plugin-version", "plugin-add*-cold"])
    assert wanted == ["plugin-version", "plugin-add-cold", "plugin-add-tunnel-cold"]


def test_a_name_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownBenchmark, match=r"'plugin-hover'; there are plugin-version, "):
        chosen(["plugin-version", "plugin-hover"])


def test_a_call_gets_its_input_and_its_undoing_is_not_timed() -> None:
    script = "import sys, time; time.sleep(0.5)"
    undo = spawning.Call((sys.executable, "-ISE", "-c", script), {})
    script = "import os, sys; sys.exit(sys.stdin.read() + os.environ['WORD'] != 'given word')"
    call = spawning.Call((sys.executable, "-ISE", "-c", script), {"WORD": "word"}, b"given ", undo=undo)
    assert spawning.seconds_of(call) < 0.5


def test_a_call_that_fails_is_no_measurement() -> None:
    call = spawning.Call((sys.executable, "-ISE", "-c", "import sys; sys.exit('no such pod')"), {})
    with pytest.raises(spawning.CallFailed, match="no such pod"):
        spawning.seconds_of(call)
