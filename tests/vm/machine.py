"""Boot the virtual machine, run one command in it, stop it: the part that works inside namespaces of its own.

`__main__` starts this module as process 1 of a fresh process namespace, in a private mount namespace. So whatever
happens to it, SIGKILL included, the kernel ends QEMU and virtiofsd with it and drops every mount and socket: there is
nothing to clean up, and therefore nothing that can be left behind.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from enum import Enum
from pathlib import Path
from typing import NoReturn

from tests.vm.image import PROJECT

BOOT_LIMIT = 60.0  # seconds; it takes 4 to 10. Emulated processors have been seen to hang in their first second
BOOT_ATTEMPTS = 3
BEGIN = b"--- begin ---\n"  # printed by boot.sh before the command's own output
LIMIT_REACHED = 124  # as `timeout` has it
NO_RESULT = 125  # the machine ended without saying how the command ended


class End(Enum):
    """How one start of the machine ended."""

    DOWN = "the machine went down by itself"
    LIMIT = "the time for the whole run was over"
    NEVER_BEGAN = "the command was not begun in time"


def run(image: Path, folder: Path, command: list[str], *, limit: float, memory: str, cpus: int) -> int:
    """Run `command` in the machine with its output on stdout and in `folder`/console.log.

    `folder` lies in the checkout, which the guest has at /project. Returns the command's exit code, LIMIT_REACHED after
    `limit` seconds, NO_RESULT when the machine went down before the command ended.
    """
    deadline = time.monotonic() + limit
    (folder / "command").write_text(f"{shlex.join(command)}\n")
    (folder / "exit-code").unlink(missing_ok=True)
    host = image / "host"
    _mount(image, host)
    qemu = ["chroot", str(host), *_qemu(memory, cpus, f"run={Path('/project') / folder.relative_to(PROJECT)}")]
    for attempt in range(1, BOOT_ATTEMPTS + 1):
        end = _boot(qemu, host, folder, deadline)
        if end is not End.NEVER_BEGAN:
            break
        print(f"vm: no sign of life within {BOOT_LIMIT:.0f} s of start {attempt} of {BOOT_ATTEMPTS}", flush=True)
    complaints = [log for log in folder.glob("kernel.log") if re.search(r"BUG:|WARNING:|Oops", log.read_text())]
    for log in complaints:
        print(f"vm: the kernel complained: {log}", flush=True)
    if (folder / "exit-code").exists():
        return int((folder / "exit-code").read_text())
    if end is End.LIMIT:
        print(f"vm: stopped at its limit of {limit:.0f} s ({folder}/console.log)", flush=True)
        return LIMIT_REACHED
    last = (folder / "console.log").read_text(errors="replace").splitlines()[-25:]
    print("\n".join(["vm: the machine went down before the command had ended; the console's last lines:", *last]))
    return NO_RESULT


def _boot(qemu: list[str], host: Path, folder: Path, deadline: float) -> End:
    """Start the machine once and follow it to its end, or to the limit that comes first."""
    sharing = _start_sharing(host, folder, deadline)
    machine = subprocess.Popen(qemu, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        return _stream(machine, folder / "console.log", deadline)
    finally:
        for process in (machine, sharing):
            process.kill()
            process.wait()
        (host / "run" / "share.sock").unlink(missing_ok=True)


def _mount(image: Path, host: Path) -> None:
    """Show QEMU's root folder the kernel, the guest's root and, inside that, the checkout; all private to us."""
    run_folder, guest = host / "run", host / "srv"
    commands: list[list[str | Path]] = [
        ["mount", "-t", "proc", "proc", host / "proc"],
        ["mount", "--rbind", "/dev", host / "dev"],
        ["mount", "-t", "tmpfs", "run", run_folder],
        ["mount", "--bind", image / "guest", guest],
        ["mount", "--bind", PROJECT, guest / "srv"],  # boot.sh binds it to /project
    ]
    for command in commands:
        subprocess.run(command, check=True)
    (run_folder / "vmlinuz").write_bytes((image / "vmlinuz").read_bytes())


def _start_sharing(host: Path, folder: Path, deadline: float) -> subprocess.Popen[bytes]:
    """virtiofsd, serving the guest's root folder on /run/share.sock of QEMU's root folder."""
    command = ["/usr/libexec/virtiofsd", "--socket-path=/run/share.sock", "--shared-dir=/srv", "--sandbox=none"]
    with (folder / "virtiofsd.log").open("wb") as log:
        sharing = subprocess.Popen(
            ["chroot", host, *command, "--cache=always", "--announce-submounts"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    while not (host / "run" / "share.sock").exists():
        if sharing.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"virtiofsd did not start:\n{(folder / 'virtiofsd.log').read_text()}")
        time.sleep(0.02)
    return sharing


def _qemu(memory: str, cpus: int, argument: str) -> list[str]:
    """QEMU's command line, for a machine without firmware, disk or network; `argument` is for boot.sh."""
    supported = any(flag in Path("/proc/cpuinfo").read_text().split() for flag in ("vmx", "svm"))
    hardware = supported and os.access("/dev/kvm", os.R_OK | os.W_OK)  # the device alone does not mean that it works
    # Without mitigations an emulated machine starts a program in half the time.
    kernel = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t mitigations=off nowatchdog lsm=none tsc=reliable"
    kernel += _known_tsc()
    start = "rootfstype=virtiofs root=root ro init=/srv/tests/vm/boot.sh"
    return [
        "qemu-system-x86_64",
        *("-M", f"microvm,accel={'kvm' if hardware else 'tcg'},pcie=on"),
        *("-cpu", "host" if hardware else "Nehalem-v2"),  # `max` hangs without hardware support
        *("-m", memory, "-smp", str(cpus)),
        *("-object", f"memory-backend-memfd,id=memory,size={memory},share=on", "-numa", "node,memdev=memory"),
        *("-kernel", "/run/vmlinuz", "-append", f"{kernel} {start} {argument}"),
        *("-chardev", "socket,id=share,path=/run/share.sock", "-device", "vhost-user-fs-pci,chardev=share,tag=root"),
        *("-object", "rng-random,id=dice,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=dice"),
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
    ]


def _known_tsc() -> str:
    """The kernel argument that spares the guest measuring its clock, which on a busy machine can fail and hang it.

    An emulated processor counts this machine's ticks. Where frequencies do not scale, as in virtual machines, `cpu MHz`
    is their rate; elsewhere the base frequency is.
    """
    scaling = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    base = scaling / "base_frequency"  # kHz
    if base.exists():
        return f" tsc_early_khz={base.read_text().strip()}"
    rates = re.findall(r"^cpu MHz\s*: ([0-9.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f" tsc_early_khz={float(rates[0]) * 1000:.0f}" if rates and not scaling.exists() else ""


def _stream(machine: subprocess.Popen[bytes], log: Path, deadline: float) -> End:
    """Copy the console to the log and, from the command's first line on, to stdout."""
    assert machine.stdout is not None
    console, begun, held = machine.stdout.fileno(), False, b""
    until = min(deadline, time.monotonic() + BOOT_LIMIT)
    with log.open("wb") as copy:
        while (left := until - time.monotonic()) > 0 and select.select([console], [], [], left)[0]:
            output = os.read(console, 65536)
            if not output:
                return End.DOWN
            copy.write(output)
            copy.flush()
            if not begun:
                held += output
                _, marker, output = held.partition(BEGIN)
                if marker:
                    begun, until = True, deadline
            if begun:
                sys.stdout.buffer.write(output)
                sys.stdout.buffer.flush()
    return End.LIMIT if begun or until == deadline else End.NEVER_BEGAN


def _give_up(signum: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signum)


def main(arguments: list[str]) -> int:
    """IMAGE FOLDER LIMIT MEMORY CPUS COMMAND…, as `__main__` starts it."""
    for number in (signal.SIGINT, signal.SIGTERM):  # process 1 ignores what it does not handle
        signal.signal(number, _give_up)
    image, folder, limit, memory, cpus, *command = arguments
    return run(Path(image), Path(folder), command, limit=float(limit), memory=memory, cpus=int(cpus))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
