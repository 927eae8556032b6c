#!/bin/bash
# Process 1 of the virtual machine: makes the machine habitable, runs one command, leaves its exit code, stops.
# The root folder is shared with every other run, so it is mounted read-only with a writable layer in memory on
# top; only the checkout (/srv here, /project in the end) is the real one. Kernel arguments: run=FOLDER (below /project, holds `command`,
# a script, and receives `exit-code` and, where the kernel had something to say, `kernel.log`).
export PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

if [ "$1" != inside ]; then
  mount -t tmpfs -o mode=755 layer /mnt
  mkdir -p /mnt/upper /mnt/work /mnt/root
  mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work root /mnt/root
  mount -o remount,rw /srv
  mount --bind /srv /mnt/root/project  # not from /srv to /srv: overlayfs cannot mount onto a folder that is one below
  cd /mnt/root && exec chroot . /bin/bash /project/tests/vm/boot.sh inside
fi

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /run/netns /run/lock
ip link set lo up
# What the kernel does not load by itself when it is asked for it: its sysctls are how MPLS is first met.
modprobe -a -q mpls_router mpls_iptunnel mpls_gso
stty -F /dev/ttyS0 -onlcr -echo 2>/dev/null

run=$(tr ' ' '\n' </proc/cmdline | sed -n 's/^run=//p')
export HOME=/root LANG=C.UTF-8 TERM=dumb COLUMNS=120 PYTHONUNBUFFERED=1 PYTHONPATH=/project
cd /project || exit
echo "--- begin ---"
bash "$run/command" </dev/null 2>&1 | cat
code=${PIPESTATUS[0]}
dmesg --level=emerg,alert,crit,err,warn >"$run/kernel.log" 2>/dev/null
echo "$code" >"$run/exit-code.new" && mv "$run/exit-code.new" "$run/exit-code"
sync
echo 0 >/proc/sys/kernel/printk
perl -e 'syscall 169, 0xfee1dead, 0x28121969, 0x01234567, 0'  # reboot(2), which ends the machine; silent, unlike sysrq
sleep 60
