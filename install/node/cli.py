"""The command `service-tunnel-install`: puts plugin and chain entry on a node, keeps them there, takes them off."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from cni_plugin import __version__
from cni_plugin.config import ANNOTATIONS, LOG_LEVELS, WHEN_AWAY, NetConf, read
from cni_plugin.errors import CniError
from cni_plugin.standalone import tunnels_of
from cni_plugin.tunnel import MODES
from cni_plugin.versions import LATEST
from install.node.chain import TYPE, Json
from install.node.files import FileTrouble
from install.node.installer import Contended, Target, install, take_entry_out
from install.node.store import Store, Watched
from install.node.watch import TROUBLES, wait_for_network, watch

CHECKOUT = Path(__file__).parents[2] / "dist" / "service-tunnel"
IN_THE_IMAGE = Path("/opt/service-tunnel/plugin")
HELPER = "service-tunnel-helper"

_DEFAULTS = NetConf("")
_ENVIRONMENT = {"auto_envvar_prefix": "SVC_TUNNEL"}

_bin_dir = click.option(
    "--bin-dir", type=click.Path(path_type=Path), default=Path("/opt/cni/bin"), show_default=True,
    help="Where the container runtime looks for CNI plugins.",
)  # fmt: skip
_conf_dir = click.option(
    "--conf-dir", type=click.Path(path_type=Path), default=Path("/etc/cni/net.d"), show_default=True,
    help="Where it looks for networks.",
)  # fmt: skip


def _to_install(command: Any) -> Any:
    """The options of `install` and `watch`."""
    options = (
        _bin_dir,
        _conf_dir,
        click.option("--source", type=click.Path(path_type=Path), default=_source, show_default="the image's, or dist/",
                     help="Folder with the built plugin."),
        click.option("--drop-in", is_flag=True,
                     help="The entry in a file of its own, <conf-dir>/<network>/*.conf (libcni 1.3 and newer)."),
        click.option("--socket", default=_DEFAULTS.helper_socket, show_default=True, help="The helper's Unix socket."),
        click.option("--run-dir", default=_DEFAULTS.run_dir, show_default=True, help="The helper's --run-dir."),
        click.option("--state-dir", default=_DEFAULTS.state_dir, show_default=True, help="The helper's --state-dir."),
        click.option("--when-helper-is-away", type=click.Choice(WHEN_AWAY), default=_DEFAULTS.when_helper_is_away,
                     show_default=True, help="What becomes of new pods meanwhile."),
        click.option("--helper-wait", type=click.FloatRange(0, 3600), default=_DEFAULTS.helper_wait, show_default=True,
                     help="Seconds for which a new pod waits for the helper before that."),
        click.option("--exempt-namespace", multiple=True, default=_DEFAULTS.exempt_namespaces, show_default=True,
                     help="Pods of these always start; repeatable."),
        click.option("--tunnel", multiple=True, metavar="VIP[,VIP…]",
                     help="VIPs of every pod, without a helper; repeatable."),
        click.option("--tunnel-mode", type=click.Choice(MODES), help="Encapsulation of --tunnel."),
        click.option("--plugin-log-level", type=click.Choice(LOG_LEVELS), default=_DEFAULTS.log_level,
                     show_default=True),
        click.option("--plugin-log-file", default=_DEFAULTS.log_file, show_default=True, help="Empty: no log."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _source() -> Path:
    return CHECKOUT if CHECKOUT.is_dir() else IN_THE_IMAGE


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Puts the CNI plugin service-tunnel and its chain entry on this node, or takes them off."""
    # Files that are being written are removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


@main.command("install", context_settings=_ENVIRONMENT)
@_to_install
@click.option("--wait", type=click.FloatRange(min=0), default=60.0, show_default=True,
              help="Seconds to wait for a network, where there is none yet.")  # fmt: skip
def install_once(wait: float, **options: Any) -> None:
    """Put the plugin into the CNI folder and the entry into the primary network's chain."""
    target = _target(**options)
    try:
        found = install(target)
        if not found.network:
            found = wait_for_network(target, wait, click.echo)
    except TROUBLES as error:
        raise click.ClickException(str(error)) from None
    if not found.network:
        raise click.ClickException(
            f"there is no network in {target.conf_dir}, so the plugin is there and no chain has it: "
            "run this again when there is, or leave that to `watch`"
        )
    click.echo(f"{target.conf_dir / found.network} is as it should be")


@main.command("watch", context_settings=_ENVIRONMENT)
@_to_install
@click.option("--resync", "resync", type=click.FloatRange(min=0.1), default=60.0, show_default=True,
              envvar="SVC_TUNNEL_INSTALL_RESYNC", help="Seconds between looks without an occasion.")  # fmt: skip
def keep_installed(resync: float, **options: Any) -> None:
    """Install, and do so again whenever something takes it away, until told to stop."""
    target = _target(**options)
    try:
        with target.store.watching():
            watch(target, resync, click.echo)
    except FileTrouble as error:
        raise click.ClickException(str(error)) from None


@main.command("uninstall", context_settings=_ENVIRONMENT)
@_bin_dir
@_conf_dir
@click.option("--purge", is_flag=True, help="The plugin too; else it stays for pods that are still to be deleted.")
@click.option("--cleanup", is_flag=True,
              help=f"Then `{HELPER} cleanup`: router, routes, rules, what running pods have.")  # fmt: skip
@click.option("--force", is_flag=True, help="Also while `watch` is running (it would put everything back).")
def uninstall(bin_dir: Path, conf_dir: Path, purge: bool, cleanup: bool, force: bool) -> None:
    """Take the entry out of every chain."""
    store = Store(bin_dir, click.echo)
    try:
        if not force:
            store.refuse_while_watched()
        troubles = take_entry_out(conf_dir, click.echo)
        if purge and not troubles:
            store.purge()
    except (Contended, FileTrouble, Watched) as error:
        raise click.ClickException(str(error)) from None
    if troubles:
        raise click.ClickException("; ".join(troubles))
    if cleanup:
        sys.exit(subprocess.run([_helper(), "cleanup"]).returncode)
    click.echo(f"`{HELPER} cleanup` removes what the helper has put into this node and its pods")


def _helper() -> str:
    """The helper's command: beside this one, or in the PATH."""
    beside = Path(sys.argv[0]).with_name(HELPER)
    found = str(beside) if beside.is_file() else shutil.which(HELPER)
    if not found:
        raise click.ClickException(f"there is no {HELPER} here: run `{HELPER} cleanup` where it is")
    return found


def _target(bin_dir: Path, conf_dir: Path, source: Path, drop_in: bool, **options: Any) -> Target:
    if not bin_dir.is_dir():
        raise click.ClickException(
            f"there is no folder {bin_dir}: where does the container runtime look for CNI plugins? Say so by --bin-dir"
        )
    return Target(bin_dir, conf_dir, source, chain_entry(**options), drop_in, click.echo)


def chain_entry(
    socket: str, run_dir: str, state_dir: str, when_helper_is_away: str, helper_wait: float,
    exempt_namespace: tuple[str, ...], tunnel: tuple[str, ...], tunnel_mode: str | None,
    plugin_log_level: str, plugin_log_file: str,
) -> Json:  # fmt: skip
    """The entry, with what differs from the plugin's defaults; raises UsageError where the plugin would refuse it."""
    given = {
        "helperSocket": (socket, _DEFAULTS.helper_socket),
        "runDir": (run_dir, _DEFAULTS.run_dir),
        "stateDir": (state_dir, _DEFAULTS.state_dir),
        "whenHelperIsAway": (when_helper_is_away, _DEFAULTS.when_helper_is_away),
        "helperWait": (helper_wait, _DEFAULTS.helper_wait),
        "exemptNamespaces": (list(exempt_namespace), list(_DEFAULTS.exempt_namespaces)),
        "tunnels": (_tunnels(tunnel, tunnel_mode), []),
        "log": (
            {"level": plugin_log_level, "file": plugin_log_file},
            {"level": _DEFAULTS.log_level, "file": _DEFAULTS.log_file},
        ),
    }
    entry: Json = {"type": TYPE, **{key: value for key, (value, default) in given.items() if value != default}}
    try:
        tunnels_of(read({"name": "any", **entry}, LATEST, "ADD"))
    except CniError as error:
        raise click.UsageError(f"the plugin would refuse this: {error}") from None
    return {**entry, "capabilities": {ANNOTATIONS: True}}


def _tunnels(tunnels: tuple[str, ...], mode: str | None) -> list[Json]:
    if mode and not tunnels:
        raise click.UsageError("--tunnel-mode is that of --tunnel: name VIPs, too")
    return [{"vips": vips.split(","), **({"mode": mode} if mode else {})} for vips in tunnels]


if __name__ == "__main__":
    main()
