#!/bin/sh
# systemd.sh DIR: boots systemd in namespaces of its own, over a copy of this host's files
# that nobody else sees, in DIR, which is empty. It ends with its systemd (SIGKILL).
# Of the host's units only journald is started: what another host lacks is not to count.
set -eu

# In the namespaces: from here to systemd itself.
boot() {
	mount -t tmpfs tmpfs "$dir"
	root=$dir/root
	mkdir "$dir/upper" "$dir/work" "$root"
	mount -t overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" overlay "$root"
	mount -t proc proc "$root/proc"
	mount -t sysfs sysfs "$root/sys"
	mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
	mount --rbind /dev "$root/dev"
	mount -t tmpfs -o mode=755 tmpfs "$root/run"
	mkdir -p "$root/run/lock" "$root/run/netns" "$root/run/systemd/system" "$root/run/old"
	mount --rbind /run/netns "$root/run/netns"
	[ ! -d /lib/modules ] || mount --rbind /lib/modules "$root/lib/modules" # a mount in the lab
	# What an ipipou that ran here by hand has left: an overlay can't rename directories
	# from below, as systemd does with that of states.
	rm -rf "$root/var/lib/ipipou" "$root/var/lib/private" "$root/etc/ipipou"
	for wanted in "$root"/lib/systemd/system/*.target.wants/* "$root"/etc/systemd/system/*.wants/*; do
		case ${wanted##*/} in
		systemd-journald*) ;;
		*) ln -sf /dev/null "$root/run/systemd/system/${wanted##*/}" ;;
		esac
	done
	printf '[Unit]\nRequires=systemd-journald.service\nAfter=systemd-journald.service\n' >"$root/run/systemd/system/lab.target"
	cd "$root"
	pivot_root . run/old
	umount -l /run/old
	exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		/lib/systemd/systemd --system --unit=lab.target --log-target=console --show-status=0
}

if [ "$1" = boot ]; then
	dir=$2
	boot
fi
dir=$1
trap '' TERM HUP INT
# Below a group of our own, or this systemd would take all processes for its own. That
# nobody else sees the mount is the doing of `ip netns exec`.
mkdir "$dir/group"
mount -t cgroup2 none "$dir/group"
group=$dir/group/ipipou-lab-$$
mkdir "$group" "$dir/box"
echo $$ >"$group/cgroup.procs"
unshare --fork --pid --mount --uts --ipc --cgroup --propagation private sh "$0" boot "$dir/box" || :
echo $$ >"$dir/group/cgroup.procs"
find "$group" -depth -type d -exec rmdir {} +
umount "$dir/group"
