#!/bin/bash
# Sets up a Debian 12 (or newer) machine for this project: system packages, and a Python environment in .venv.
#
# Made to be run before everything else, each time: it looks first and changes only what is missing, in well under
# a second when nothing is. Root is needed only while a package is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "setup: $*"; }
fail() { say "$*" >&2; exit 1; }
installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

install_missing() { # PACKAGE=WHY…
  local wanted missing=() package
  for wanted in "$@"; do
    package=${wanted%%=*}
    installed "$package" || { missing+=("$package"); say "$package is missing: ${wanted#*=}"; }
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || fail "run this as root, or: apt-get install --no-install-recommends ${missing[*]}"
  say "apt-get update"
  apt-get update -qq || fail "apt-get update failed: see above; the packages are ${missing[*]}"
  say "apt-get install ${missing[*]}"
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends "${missing[@]}" </dev/null
}

command -v dpkg-query >/dev/null || fail "this machine has no dpkg: Debian 12 or newer is what is supported"
install_missing \
  python3="the language; what the plugin is frozen with is another: install/interpreter.py" \
  python3-venv="the environment in .venv" \
  iproute2="namespaces, links, routes" \
  iptables="HMARK, NOTRACK" \
  nftables="the pods' rules" \
  ipset="sets of VIPs" \
  containernetworking-plugins="the CNI chain that our plugin is the last of" \
  procps="sysctl" \
  kmod="modprobe" \
  iputils-ping="ICMP echo in tests" \
  tcpdump="packets to look at when a test fails" \
  binutils="PyInstaller puts the plugin together with objdump and objcopy" \
  ca-certificates="packages over https" \
  debootstrap="root folders of the virtual machine" \
  strace="kills the built plugin at its system calls, and stops it at one" \
  util-linux="unshare, nsenter, setpriv"

python=/usr/bin/python3 # not the first of the PATH, which may be anything
version=$($python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is $version; 3.11 or newer is needed"

pins=$(sed -n '/^\[build-system\]/,/^\[tool\.ruff\]/p' pyproject.toml | cat - install/constraints.txt install/setup.sh)
stamp=.venv/pins-$(sha256sum <<<"$pins" | cut -c1-16)-$version
if [ ! -e "$stamp" ]; then
  [ "$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ] || {
    say "Python environment in .venv (Python $version)"
    $python -m venv --clear .venv
  }
  say "pip install: the pins of pyproject.toml"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint install/constraints.txt \
    --config-settings editable_mode=compat --editable '.[dev]'
  rm -f .venv/pins-*
  touch "$stamp"
  say "done"
fi
