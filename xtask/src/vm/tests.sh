#!/bin/sh
# Runs the tests inside a test machine, as its first process, and switches it off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run MANTLE_BIN="@mantle@"
printf '#!/bin/sh\nexec modprobe -d "%s" "$@"\n' "@modules@" >/run/modprobe
chmod 755 /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe
ip link set lo up
# As a service manager would give it; the agent needs two for each connection.
ulimit -n 1048576
@variables@
cd "@folder@" || echo "there is no @folder@"
run() {
    "@tests@" --test-threads=1 --color=never "$@"
}
@run@
echo "vm: the tests ended with $?"
echo o >/proc/sysrq-trigger
# The machine goes off while this waits.
sleep 60
