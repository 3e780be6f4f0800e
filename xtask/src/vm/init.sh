#!/bin/busybox sh
# The first process of a test machine: goes over to the host's file system, which it cannot write to.
export PATH=/bin
/bin/busybox --install -s /bin
fail() {
    echo "init: $1" >/dev/ttyS1
    poweroff -f
}
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in /modules/*; do
    insmod "$module" || fail "cannot insert $module"
done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose host /host || fail "cannot mount the host's root"
mount -t tmpfs over /over && mkdir /over/upper /over/work || fail "cannot mount a tmpfs"
mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work root /new || fail "cannot mount an overlay"
cd /new || fail "there is no root"
mount -t proc proc proc
mount -t sysfs sys sys
mount -t devtmpfs dev dev
mount -t tmpfs run run
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
# The first process itself must change its root: the kernel's own calls of modprobe then find theirs.
exec switch_root . /bin/sh "@then@" </dev/null >/dev/ttyS1 2>&1
