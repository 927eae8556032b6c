"""The documentation says what the code says: links, names, reasons, flags, keys, examples."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from prometheus_client.metrics import MetricWrapperBase

from cni_plugin import config
from cni_plugin.environment import REQUIRED
from cni_plugin.versions import LATEST
from node_helper.cli import main
from node_helper.metrics import Metrics
from node_helper.services import tunnel_services
from node_helper.sources.manifests import ManifestFolder
from node_helper.vips import VipRules
from tests.bench.registry import names

TOP = Path(__file__).parents[2]
PAGES = (TOP / "README.md", TOP / "CHANGELOG.md", *sorted((TOP / "docs").rglob("*.md")))
OPERATING = (TOP / "docs" / "operating.md").read_text()
PROGRAM = ("cni_plugin", "node_helper")

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_NAME = re.compile(r"`((?:cni_plugin|node_helper|tests|install|conformance)/[\w./-]+)(?::(\w+))?`")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def each_page() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))


def prose(page: Path) -> str:
    """The page without its blocks of code, in which brackets mean something else."""
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """What its headings can be linked by, after GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page()
def test_a_link_within_the_project_leads_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(page)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@each_page()
def test_a_file_or_function_that_is_named_exists(page: Path) -> None:
    absent = []
    for path, name in _NAME.findall(page.read_text()):
        file = TOP / path
        if not file.exists() or (name and name not in names_in(file)):
            absent.append(f"{path}:{name}")
    assert not absent


def names_in(file: Path) -> set[str]:
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, definitions)}


def sources() -> Iterator[ast.AST]:
    for package in PROGRAM:
        for file in (TOP / package).rglob("*.py"):
            yield from ast.walk(ast.parse(file.read_text()))


def reasons() -> set[str]:
    """Every CamelCase text that goes into a `Problem`, directly or by a function whose name says so."""
    found = set()
    for node in sources():
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called.lower().endswith(("problem", "_unreadable")):
                texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                found |= {text for text in texts if re.fullmatch(r"(?=\w*[a-z])[A-Z]\w*[A-Z]\w*", text)}
    return found


def test_every_reason_of_a_problem_is_described_and_no_other() -> None:
    section = OPERATING.partition("## Problems")[2].partition("\n## ")[0]
    described = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    assert len(reasons()) > 15
    assert sorted(described) == sorted(reasons())


def commands() -> list[tuple[str, click.Command]]:
    return sorted(main.commands.items())


@pytest.mark.parametrize(("name", "command"), commands(), ids=[name for name, _ in commands()])
def test_every_command_and_each_of_its_flags_is_described(name: str, command: click.Command) -> None:
    assert f"service-tunnel-helper {name}" in OPERATING
    options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
    assert not [option for option in options if f"`{option}`" not in OPERATING]


def test_the_environment_variable_of_every_flag_is_the_one_described() -> None:
    group = main.make_context("service-tunnel-helper", ["run"])
    run = main.commands["run"]
    context = click.Context(run, parent=group, info_name="run", **run.context_settings)
    for parameter in run.params:
        if isinstance(parameter, click.Option) and parameter.name:
            variable = parameter.envvar or f"{context.auto_envvar_prefix}_{parameter.name.upper()}"
            assert f"| `{parameter.opts[0]}` | `{variable}` |" in OPERATING


def metrics() -> Iterator[tuple[str, str, str]]:
    """Name with its labels, type and help text of each metric."""
    for collector in set(Metrics().registry._names_to_collectors.values()):
        assert isinstance(collector, MetricWrapperBase)
        (family,) = collector.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ",".join(collector._labelnames)
        yield name + (f"{{{labels}}}" if labels else ""), family.type, family.documentation


def test_every_metric_is_described_with_labels_and_type_and_no_other() -> None:
    section = OPERATING.partition("## Metrics")[2].partition("\n### ")[0]
    described = re.findall(r"^\| `(service_tunnel_[^`]+)` \| (\w+) \|", section, re.MULTILINE)
    assert sorted(described) == sorted((name, kind) for name, kind, _ in metrics())


def test_metrics_are_named_and_explained_by_convention() -> None:
    for name, kind, text in metrics():
        bare = name.partition("{")[0]
        assert bare.startswith("service_tunnel_") and text.endswith(".")
        assert bare.endswith("_total") == (kind == "counter"), name
        assert kind != "histogram" or bare.endswith("_seconds"), name


def test_every_benchmark_is_described() -> None:
    described = (TOP / "docs" / "benchmarks.md").read_text()
    assert not [name for name in names() if f"`{name}`" not in described]


def chain_entry() -> dict[str, object]:
    section = OPERATING.partition("## The chain entry")[2]
    entry: dict[str, object] = json.loads(section.partition("```json")[2].partition("```")[0])
    return entry


def test_the_chain_entry_that_is_described_has_every_key_with_its_default() -> None:
    entry = {"cniVersion": LATEST, "name": "pods", **chain_entry()}
    assert config.read(entry, LATEST, "ADD") == config.NetConf(LATEST, "pods")
    keys = {key for node in sources() for key in keys_read(node)}
    assert keys - {"name", "runtimeConfig", "prevResult"} <= {*entry, "log.level", "log.file"}


def keys_read(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "reader.field":
        key = node.args[0]
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value


def test_every_verb_is_described() -> None:
    architecture = (TOP / "docs" / "architecture.md").read_text()
    assert not [verb for verb in REQUIRED if verb not in architecture]


def test_the_example_chains_entry_is_accepted() -> None:
    chain = json.loads((TOP / "docs" / "examples" / "10-pods.conflist").read_text())
    entry = {"cniVersion": chain["cniVersion"], "name": chain["name"], **chain["plugins"][-1]}
    assert config.read(entry, chain["cniVersion"], "ADD").name == "pods"


def test_the_example_manifests_are_served_without_a_problem() -> None:
    folder = ManifestFolder(TOP / "docs" / "examples" / "manifests")
    try:
        resolution = tunnel_services(folder.read(), VipRules(), "vxlan-gpe")
    finally:
        folder.close()
    assert not resolution.problems
    (service,) = resolution.services
    assert [str(vip) for vip in service.vips] == ["198.51.100.1", "2001:db8::1"]
    assert service.usable == ("10.244.1.2",)


def test_the_readmes_service_is_served(tmp_path: Path) -> None:
    text = (TOP / "README.md").read_text().partition("```yaml")[2].partition("```")[0]
    (tmp_path / "service.yaml").write_text(text)
    folder = ManifestFolder(tmp_path)
    try:
        resolution = tunnel_services(folder.read(), VipRules(), "gre")
    finally:
        folder.close()
    assert [problem.reason for problem in resolution.problems] == ["NoEndpoints"]
    assert [service.mode for service in resolution.services] == ["vxlan-gpe"]
