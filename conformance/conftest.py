"""Which plugins are examined, what is built for it, and the table of differences at the end of a run.

    pytest conformance                                       our plugin and the reference plugin `tuning`
    pytest conformance --plugin /opt/cni/bin/vrf --config '{"vrfname": "blue"}'
    pytest conformance --plugin /opt/cni/bin/vrf --profile vrf.toml
    pytest conformance --profile tuning

A test that is skipped fails the run, as everywhere in this project; so does a line of a table that nothing was seen of.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conformance import peers
from conformance.contract.cases import all_cases
from conformance.contract.fault import Case
from conformance.contract.profile import Difference, Profile, load
from conformance.contract.world import World
from tests.conftest import RunWatch
from tests.testbed.cni import plugin_binary

HERE = Path(__file__).parent
PROFILES = HERE / "profiles"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--plugin", metavar="PATH", help="examine this CNI plugin, and only against the contract")
    group.addoption("--config", metavar="JSON", help="keys of the plugin's own, added to the profile's")
    group.addoption("--profile", metavar="NAME|FILE", help="a profile of conformance/profiles, or a file like those")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RunWatch(config))
    config.pluginmanager.register(Explained(config))


def chosen_profiles(config: pytest.Config) -> list[Profile]:
    """By the options; all of the folder where there are none. Raises UsageError."""
    plugin, own, named = (config.getoption(name) for name in ("--plugin", "--config", "--profile"))
    try:
        if named:
            found = [load(Path(named) if named.endswith(".toml") else PROFILES / f"{named}.toml")]
        elif plugin:
            found = [Profile(Path(plugin).name, Path(plugin).name, plugin, {})]
        else:
            found = [load(path) for path in sorted(PROFILES.glob("*.toml"))]
        keys = json.loads(own) if own else {}
        binary = str(Path(plugin).resolve()) if plugin else None
    except (OSError, ValueError) as error:
        raise pytest.UsageError(str(error)) from None
    return [replace(one, config={**one.config, **keys}, binary=binary or one.binary) for one in found]


def cases_of(profile: Profile) -> list[Case]:
    return [case for case in all_cases() if profile.has(case.name)]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Another's plugin is held against the contract; the chains are about ours."""
    only = config.getoption("--plugin") or config.getoption("--profile")
    return (
        True if only and collection_path.name.startswith("test_") and collection_path.stem != "test_contract" else None
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "profile" not in metafunc.fixturenames:
        return
    profiles = chosen_profiles(metafunc.config)
    if "case" in metafunc.fixturenames:
        pairs = [(profile, case) for profile in profiles for case in cases_of(profile)]
        ids = [f"{profile.name}: {case.name}" for profile, case in pairs]
        metafunc.parametrize(("profile", "case"), pairs, ids=ids)
    else:
        metafunc.parametrize("profile", profiles, ids=[profile.name for profile in profiles])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.path.parent == HERE and os.geteuid() != 0:
        pytest.fail("conformance needs root: it makes network namespaces. Run it as root.", pytrace=False)


@pytest.fixture(scope="session")
def peer_folder() -> Path:
    """The reference plugins and cnitool; building them, once, takes a minute or two."""
    return peers.ensure()


class Worlds:
    """The world that cases of one profile share as long as it is as found, and others that a test wants."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._world: World | None = None

    def another(self, world: World) -> World:
        return World(world.profile, world.binary, self._parent)

    def of(self, profile: Profile, binary: Path) -> World:
        world = self._world
        if world is None or world.profile != profile or not world.as_found:
            self.close()
            world = self._world = World(profile, binary, self._parent)
        return world

    def close(self) -> None:
        if self._world is not None:
            self._world.close()
            self._world = None


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    worlds = Worlds(tmp_path_factory.mktemp("worlds"))
    yield worlds
    worlds.close()


@pytest.fixture
def world(profile: Profile, worlds: Worlds, request: pytest.FixtureRequest) -> World:
    """A pod for the profile's plugin, with nothing done to it yet."""
    binary = profile.binary.replace("{service-tunnel}", str(plugin_binary()))
    if "{peers}" in binary:
        binary = binary.replace("{peers}", str(request.getfixturevalue("peer_folder")))
    if not os.access(binary, os.X_OK):
        pytest.fail(f"there is no plugin {binary}: `make plugin` builds ours", pytrace=False)
    return worlds.of(profile, Path(binary))


class Explained:
    """Counts the lines of the tables that were seen to hold; a line that was not, in a whole run, fails it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._seen: Counter[tuple[str, str]] = Counter()
        self._examined: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            for name, value in report.user_properties:
                if name == "examined":
                    self._examined[str(value)] += 1
                elif name == "explained":
                    profile, why = str(value).split("\n", 1)  # a text: another worker's comes as JSON
                    self._seen[profile, why] += 1

    def _whole(self) -> Iterator[tuple[Profile, list[Difference]]]:
        """Profiles whose cases all ran, with the lines that nothing was seen of."""
        for profile in chosen_profiles(self._config):
            if self._examined[profile.name] == len(cases_of(profile)):
                yield profile, [line for line in profile.differences if not self._seen[profile.name, line.why]]

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        if session.exitstatus == pytest.ExitCode.OK and any(unseen for _, unseen in self._whole()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return (yield)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for profile, unseen in self._whole():
            number = self._examined[profile.name]
            terminalreporter.section(f"{profile.name}: {number} cases of the CNI contract")
            for line in profile.differences:
                count = self._seen[profile.name, line.why]
                terminalreporter.line(f"{count:5} differ: {line.why} ({line.aspect}: {' '.join(line.seen.split())})")
            for line in unseen:
                terminalreporter.line(f"nothing was seen of this difference: {line.why}", red=True)
