#!/bin/sh
# A systemd as process 1 of namespaces of its own, on this machine's kernel: tools/systemd/namespaces.py calls it.
#
# namespaces.sh FOLDER DISK TREE RESULTS TTY MORE...
#
# FOLDER: for its changes, which survive its reboot. DISK: the root, only read. TTY: its console. The others are its
# further disks, from /dev/vdb on.
set -eu
folder=$1 disk=$2 tree=$3 results=$4 tty=$5
shift 5
mkdir -p "$folder/upper" "$folder/work" "$folder/lower" "$folder/root"
root=$folder/root
mkdir -p "$folder/upper/etc/systemd/system" # a login there would hang up what else writes to the console
ln -sf /dev/null "$folder/upper/etc/systemd/system/console-getty.service"
mount -o loop,ro "$disk" "$folder/lower"
mount -t overlay overlay -o "lowerdir=$folder/lower,upperdir=$folder/upper,workdir=$folder/work" "$root"
mount -t proc proc "$root/proc"
# What is not in a namespace (the kernel's settings, devices' rules) is this machine's.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount --bind "$folder/cmdline" "$root/proc/cmdline"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tracefs tracefs "$root/sys/kernel/tracing"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for name in console ttyS0; do
    touch "$root/dev/$name"
    mount --bind "$tty" "$root/dev/$name"
done
letters="b c d e f"
for file in "$tree" "$results" "$@"; do
    name=vd${letters%% *}
    letters=${letters#* }
    touch "$root/dev/$name"
    mount --bind "$file" "$root/dev/$name"
done
cd "$root"
mkdir -p old
pivot_root . old
umount -l /old
exec env -i container=memscaler PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --show-status=no </dev/console >/dev/console 2>&1
