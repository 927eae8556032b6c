"""`make demo [ARGS=…]`: looks at what is there, runs the story, tells the result by table and exit status.

Whatever ends it, Ctrl-C and SIGTERM included, takes everything down that it has built; only `--keep`, after
the last act, leaves it. A kernel that lacks something is named, and the same demo runs in the virtual machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from types import FrameType
from typing import NoReturn

from cni_plugin.tunnel import MODES, VXLAN_GPE
from tests.demo.keeping import DEFAULT_NAME, CannotKeep, KeptDemo
from tests.demo.story import Size, Story
from tests.demo.telling import Teller, listed, table
from tests.kernel_features import lacking
from tests.testbed.cni import REFERENCE_PLUGINS, plugin_binary
from tests.testbed.namespaces import ENDING, REPOSITORY, TestbedError
from tests.testbed.scene import Scene

FOR_SLOW_MACHINES = Size(flows=1000, connections=40, single=20, interval=1.0, patience=30.0, timeout=10.0)
SLOW = 2.0
"""Seconds to build the hosts, from which on a machine counts as slow: mostly it takes 0.3, in emulation 4."""
VM_LIMIT = 1500
"""Seconds."""
VM_PATIENCE = 400
"""Seconds until a condition counts as failed there; emulated on a busy machine, a helper has taken 100 to start."""
NOT_AS_EXPECTED, CANNOT = 1, 2
"""Exit statuses."""


class Interrupted(BaseException):
    """A signal asks for the end."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


def main() -> int:
    """0 when all was as expected, 1 when not, 2 when it could not begin, 128 + N after signal N."""
    chosen = _arguments()
    if os.geteuid() != 0:
        return _cannot("it makes network namespaces, so it needs root: run it as root, or with sudo")
    kept = KeptDemo(chosen.name)
    try:
        if chosen.down:
            print(kept.down())
            return 0
        if chosen.keep:
            kept.refuse_a_second()
    except CannotKeep as error:
        return _cannot(str(error))
    try:
        missing = lacking()
    except (subprocess.CalledProcessError, OSError) as error:
        return _cannot(f"this machine does not let root make network namespaces: {error}")
    needed = [feature for feature in missing if feature == VXLAN_GPE or feature not in MODES]
    if chosen.vm or (needed and not chosen.here):
        return _in_the_vm(needed, chosen)
    if needed:
        return _cannot(f"kernel {platform.release()} lacks {listed(needed)}")
    for binary, mend in ((plugin_binary(), "`make plugin`"), (f"{REFERENCE_PLUGINS}/ptp", "`make setup`")):
        if not os.access(binary, os.X_OK):
            return _cannot(f"{binary} is missing: {mend} sees to it")
    modes = tuple(mode for mode in missing if mode in MODES)
    return _show(modes, kept if chosen.keep else None, brief=chosen.brief)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo ARGS=…", description="Shows the main job on this machine.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--vm", action="store_true", help="in a virtual machine with Debian's stock kernel")
    where.add_argument("--here", action="store_true", help="on this machine's kernel, or not at all")
    after = parser.add_mutually_exclusive_group()
    after.add_argument("--keep", action="store_true", help="leave the topology for exploring, and say how")
    after.add_argument("--down", action="store_true", help="take down what --keep has left")
    parser.add_argument("--brief", action="store_true", help="only until the Service is served")
    parser.add_argument("--name", type=_name, default=DEFAULT_NAME, help="of what is kept (%(default)s)")
    return parser.parse_args()


def _name(text: str) -> str:
    if not re.fullmatch("[a-z][a-z0-9]{0,15}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not up to 16 lower-case letters and digits")
    return text


def _cannot(why: str) -> int:
    print(f"demo: {why}", file=sys.stderr)
    return CANNOT


def _in_the_vm(needed: list[str], chosen: argparse.Namespace) -> int:
    """Goes on as the program that runs the virtual machine; returns only when that makes no sense."""
    if needed:
        print(f"kernel {platform.release()} lacks {listed(needed)}: the demo runs in a virtual machine instead")
    if chosen.keep:
        return _cannot("a virtual machine ends with the demo, so there is nothing that --keep could leave")
    print("in the virtual machine, on Debian's stock kernel; it is emulated, so this takes some minutes", flush=True)
    os.chdir(REPOSITORY)
    brief = ["--brief"] if chosen.brief else []
    machine = [sys.executable, "-m", "tests.vm", "--label=demo", f"--limit={VM_LIMIT}"]
    patient = ["env", f"TEST_PATIENCE={VM_PATIENCE}"]
    return os.execv(sys.executable, [*machine, "--", *patient, "python", "-m", "tests.demo", "--here", *brief])


def _show(lacking_modes: tuple[str, ...], kept: KeptDemo | None, *, brief: bool) -> int:
    """Builds, plays, takes down or keeps; `lacking_modes` are those that this kernel has not."""
    teller = Teller()
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    scene, advice = None, ""
    try:
        scene = _build(teller, kept)
        size = Size()
        if teller.seconds > SLOW:
            size = FOR_SLOW_MACHINES
            teller.step("this machine is slow: fewer flows and connections are used, with more patience")
        teller.step("starting service-tunnel-helper on each node, all reading one folder of Kubernetes YAML")
        scene.start_helpers(scene.cluster.nodes)
        story = Story(scene, teller, size, lacking_modes)
        completed = _play(story.acts(brief=brief, keep=kept is not None), teller)
        _ignore_signals()
        if kept is not None:
            advice = kept.keep(scene)
    except Interrupted as interrupted:
        teller.plain(f"\n{interrupted}: everything is taken down")
        return 128 + interrupted.number
    except TestbedError as error:
        teller.plain(f"\nthe demo could not be built: {error}")
        return CANNOT
    finally:
        _ignore_signals()
        if scene is not None and not advice:
            scene.close()
            teller.step("everything is taken down")
    return _result(teller, completed, advice)


def _build(teller: Teller, kept: KeptDemo | None) -> Scene:
    teller.plain("kube-service-tunnel: public addresses straight into pods\n")
    teller.step(f"kernel {platform.release()} has what is needed; all is built in namespaces")
    teller.step("building client, router, 2 ingress nodes and 2 worker nodes")
    return Scene(helpers=False, visible=kept.prefix if kept else False)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    _ignore_signals()
    raise Interrupted(number)


def _ignore_signals() -> None:
    """From here on everything is taken down or kept, which must not be interrupted; it takes a second or two."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def _play(acts: Mapping[str, Callable[[], None]], teller: Teller) -> bool:
    """Acts one after the other; an act that cannot go on ends the story, as the next ones stand on it."""
    for title, act in acts.items():
        teller.act(title)
        try:
            act()
        except (TestbedError, OSError, RuntimeError, LookupError, subprocess.SubprocessError) as error:
            reason = textwrap.shorten(str(error).partition("\n")[0], 90, placeholder=" …")
            teller.finding("this act", "goes to its end", reason, False)
            teller.plain(f"\n{error}\n")
            return False
    return True


def _result(teller: Teller, completed: bool, advice: str) -> int:
    bad = [finding for finding in teller.findings if not finding.good]
    teller.plain(f"\n{table(teller.findings)}\n")
    if not completed:
        verdict = "the demo did not come to its end"
    elif bad:
        verdict = f"{len(bad)} of {len(teller.findings)} findings are not as they should be"
    else:
        verdict = f"all {len(teller.findings)} findings are as they should be"
    teller.plain(f"{verdict}; {teller.seconds:.0f} s")
    if advice:
        teller.plain(f"\n{advice}")
    return 0 if completed and not bad else NOT_AS_EXPECTED


if __name__ == "__main__":
    sys.exit(main())
