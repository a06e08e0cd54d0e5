#!/bin/sh
# The guest's first process, once its root is the host's (setup.sh's initramfs got it there): makes the machine
# what a program expects, runs the job, reports, powers off. $1 is the job's directory, see vm.go.
# No `set -e`: whatever fails, the way out at the end must be reached.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
# /tmp is not mounted over: test binaries are there. What is written goes to the root's tmpfs overlay all the same.
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
echo lab >/proc/sys/kernel/hostname
ip link set lo up

# There is no udev that would make /dev/virtio-ports.
for port in /sys/class/virtio-ports/*; do
  if [ "$(cat "$port/name")" = lab ]; then out=/dev/${port##*/}; fi
done
if [ ! -c "$out" ]; then
  echo "lab-guest: no virtio port for the output" >/dev/console
  busybox poweroff -f
fi

# One open for output and result both: a virtio port takes only one.
exec 3>"$out"
printf '%s boot\n' "$(cat "$1/mark")" >&3
sh "$1/command" >&3 2>&3 </dev/null 3>&-
code=$?
# Killed, and nobody knows by whom: the kernel may, for want of memory.
if [ "$code" = 137 ]; then
  busybox dmesg | tail -n 30 >&3
  busybox free -m >&3
fi
printf '%s exit %d\n' "$(cat "$1/mark")" "$code" >&3
busybox poweroff -f
