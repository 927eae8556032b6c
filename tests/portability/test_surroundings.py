"""The built folder works wherever and however a runtime calls it; where it cannot, it says so and hangs nowhere."""

from __future__ import annotations

import json

import pytest

from tests.kernel.private_netns import run
from tests.portability.sandbox import PROGRAM, RESULT, Case, Sandbox


def with_variables(**variables: str) -> Case:
    settings = " ".join(f"{name}={value!r}" for name, value in variables.items())
    return Case(f"exec env {settings} {PROGRAM}")


OTHER_LIBRARIES = 'mkdir "$R/other"; for name in {names}; do echo rubbish >"$R/other/$name"; done'
"""A folder of files that the dynamic loader would stop at, by names that our own folder has, too."""
OURS = "libpython3.9.so.1.0 libexpat.so.1 libffi.so.7 libz.so.1"

CASES = {
    "plainly": Case(),
    "with an empty environment": Case(
        f'for name in ${{!CNI_@}}; do set -- "$@" "$name=${{!name}}"; done; exec env -i "$@" {PROGRAM}'
    ),
    # Folders and links on the way.
    "through a symlink": Case("exec /usr-local-bin", setup=f'ln -s {PROGRAM} "$R/usr-local-bin"'),
    "through a relative symlink of another folder": Case(
        "cd /other && exec ./service-tunnel",
        setup='mkdir "$R/other"; ln -s ../opt/cni/bin/service-tunnel "$R/other/service-tunnel"',
    ),
    "through a chain of symlinks by another name": Case(
        "exec /two/plugin", setup=f'mkdir "$R/one" "$R/two"; ln -s {PROGRAM} "$R/one/x"; ln -s ../one/x "$R/two/plugin"'
    ),
    "as the installer puts it": Case(
        "exec /bin-of-cni/service-tunnel",
        setup='mkdir -p "$R/bin-of-cni/.service-tunnel/0.1.0"; '
        'mount --bind "$PLUGIN" "$R/bin-of-cni/.service-tunnel/0.1.0"; '
        'ln -s .service-tunnel/0.1.0/service-tunnel "$R/bin-of-cni/service-tunnel"',
    ),
    "through a bind mount": Case(
        "exec '/a folder/with ünicode/service-tunnel'",
        setup='mkdir -p "$R/a folder/with ünicode"; mount --bind "$PLUGIN" "$R/a folder/with ünicode"',
    ),
    "from a mount that allows nothing but to read and run": Case(
        "exec /strict/service-tunnel",
        setup='mkdir "$R/strict"; mount --bind "$PLUGIN" "$R/strict"; '
        'mount -o remount,bind,ro,nosuid,nodev,noatime "$R/strict"',
    ),
    "by a path relative to the working folder": Case("cd /opt/cni && exec bin/service-tunnel"),
    "by a search of the PATH": Case("PATH=/nowhere:/opt/cni/bin exec service-tunnel"),
    "from a working folder that was deleted": Case(
        f"mkdir /tmp/here && cd /tmp/here && rmdir /tmp/here && exec {PROGRAM}"
    ),
    "by another first argument": Case(f"exec -a 'kubelet: sandbox' {PROGRAM}"),
    "by an empty first argument": Case(f"exec -a '' {PROGRAM}"),
    "by a first argument that looks like an option": Case(f"exec -a -c {PROGRAM}"),
    "with further arguments": Case(f"exec {PROGRAM} --help -c 'raise SystemExit(7)' x.py"),
    # Variables that the dynamic loader reads.
    "with LD_LIBRARY_PATH to nowhere": with_variables(LD_LIBRARY_PATH="/nowhere::/dev/null:relative"),
    "with LD_LIBRARY_PATH to rubbish by our libraries' names": Case(
        f"exec env LD_LIBRARY_PATH=/other {PROGRAM}", setup=OTHER_LIBRARIES.format(names=OURS)
    ),
    "with LD_PRELOAD of nothing": Case(f"exec env LD_PRELOAD=/nowhere/lib.so {PROGRAM}", quiet=False),
    "with LD_BIND_NOW": with_variables(LD_BIND_NOW="1"),
    # Variables that Python, or another program frozen by PyInstaller, reads.
    "with Python's own variables": with_variables(
        PYTHONHOME="/nowhere",
        PYTHONPATH="/other",
        PYTHONSTARTUP="/other/start.py",
        PYTHONINSPECT="1",
        PYTHONVERBOSE="3",
        PYTHONDEVMODE="1",
        PYTHONWARNINGS="error",
        PYTHONMALLOC="debug",
        PYTHONIOENCODING="latin-1:strict",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="warn",
        PYTHONCASEOK="1",
        PYTHONPLATLIBDIR="nowhere",
        PYTHONDUMPREFS="1",
        PYTHONHASHSEED="rubbish",
    ),
    "with other modules by our modules' names": Case(
        f"cd /other && exec env PYTHONPATH=/other {PROGRAM}",
        setup='mkdir "$R/other"; for name in posix sys codecs encodings abc io cni_plugin _struct sitecustomize; do '
        'echo "raise SystemExit(9)" >"$R/other/$name.py"; done',
    ),
    "started by another frozen program": with_variables(
        _MEIPASS2="/nowhere",
        _PYI_ARCHIVE_FILE="/nowhere/other",
        _PYI_APPLICATION_HOME_DIR="/nowhere",
        _PYI_PARENT_PROCESS_LEVEL="1",
        _PYI_SPLASH_IPC="1",
        PYINSTALLER_RESET_ENVIRONMENT="0",
        PYINSTALLER_STRICT_UNPACK_MODE="1",
    ),
    "in a locale that is not there": with_variables(LANG="xx_YY.ISO-8859-15", LC_ALL="tlh_QO.KOI8-R", LANGUAGE="tlh"),
    "without a home, with a temporary folder that is none": with_variables(HOME="", TMPDIR="/nowhere", TMP="", TERM=""),
    # What the process may do.
    "with few descriptors": Case(f"ulimit -n 8; exec {PROGRAM}"),
    "with little memory": Case(f"ulimit -v 65536; exec {PROGRAM}"),
    "with a small stack": Case(f"ulimit -s 256; exec {PROGRAM}"),
    "without core files and with few processes": Case(f"ulimit -c 0; ulimit -u 1; exec {PROGRAM}"),
    "with signals ignored": Case(f"trap '' HUP INT QUIT PIPE TERM CHLD; exec {PROGRAM}"),
    "with everything masked in new files' modes": Case(f"umask 0777; exec {PROGRAM}"),
    # What is not mounted.
    "without /tmp": Case(setup='umount "$R/tmp"; rmdir "$R/tmp"'),
    "with a /tmp from which nothing runs": Case(setup='mount -o remount,noexec,nosuid "$R/tmp"'),
    "without /dev": Case(setup='umount -l "$R/dev"'),
    "without /etc and /var": Case(setup='umount "$R/etc"; rmdir "$R/etc" "$R/var"'),
    "without a zlib of the system's": Case(
        setup='mkdir "$R/tmp/upper" "$R/tmp/work"; mount -t overlay overlay '
        '-o "lowerdir=$R/usr,upperdir=$R/tmp/upper,workdir=$R/tmp/work" "$R/usr"; rm "$R"/usr/lib/*/libz.so.1*'
    ),
    "with stderr closed": Case(f"exec {PROGRAM} 2>&-"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_tells_its_versions(sandbox: Sandbox, case: Case) -> None:
    done = sandbox.run(case, CNI_COMMAND="VERSION")
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["cniVersion"] == "1.1.0"
    assert not (done.stderr and case.quiet), done


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_gives_a_pod_tunnels_and_takes_them_again(pod: Sandbox, case: Case) -> None:
    added = pod.call("ADD", case)
    assert added.returncode == 0, added
    assert json.loads(added.stdout) == RESULT
    assert not (added.stderr and case.quiet), added
    assert "svctun-gpe" in links(pod)
    gone = pod.call("DEL", case)
    assert gone.returncode == 0, gone
    assert "svctun" not in links(pod)


def test_versions_are_told_without_an_input(sandbox: Sandbox) -> None:
    done = sandbox.run(Case(f"exec {PROGRAM} <&-"), CNI_COMMAND="VERSION")
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["cniVersion"] == "1.1.0"


def test_without_an_input_add_says_so(pod: Sandbox) -> None:
    done = pod.call("ADD", Case(f"exec {PROGRAM} <&-"))
    assert done.returncode == 1, done
    assert json.loads(done.stdout)["code"] == 5
    assert "stdin" in json.loads(done.stdout)["msg"]


@pytest.mark.parametrize("closed", [">&-", ">/dev/full", "<&- >&- 2>&-"])
@pytest.mark.parametrize("verb", ["VERSION", "ADD"])
def test_an_answer_that_nobody_can_read_is_a_failure(pod: Sandbox, verb: str, closed: str) -> None:
    done = pod.call(verb, Case(f"exec {PROGRAM} {closed}"))
    assert done.returncode == 1, done
    assert not done.stdout
    # The runtime calls DEL then.
    assert pod.call("DEL").returncode == 0
    assert "svctun" not in links(pod)


def test_without_proc_versions_are_told_and_add_leaves_nothing(pod: Sandbox) -> None:
    case = Case(setup='umount "$R/proc"')
    told = pod.call("VERSION", case)
    assert told.returncode == 0, told
    added = pod.call("ADD", case)
    assert added.returncode == 1, added
    assert "/proc" in added.stdout.decode()
    assert "svctun" not in links(pod)


def links(pod: Sandbox) -> str:
    return run(pod.netns, "ip", "-brief", "link")
