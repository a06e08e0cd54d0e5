#!/bin/sh
# Fetches and builds what the virtual-machine lab boots: Debian packages, a stock Debian kernel, an initramfs.
# Run as root on Debian 12 or later (amd64). Run again, it checks, prints one line and touches nothing.
#
#   IPIPOU_LAB_CACHE    where the kernel and the initramfs are kept (default /var/cache/ipipou-lab)
#   IPIPOU_LAB_KERNEL   5.10, 6.1 (default) or 6.12: all but the default in a directory of that name in the cache
set -eu

kernel=${IPIPOU_LAB_KERNEL:-6.1}
top=${IPIPOU_LAB_CACHE:-/var/cache/ipipou-lab}
cache=$top/$kernel
if [ "$kernel" = 6.1 ]; then cache=$top; fi
recipe=2 # raise when what is built below changes, so that old caches are rebuilt
log=$cache/setup.log
# iproute2, nftables, … are for the tests: the guest's root is this host's.
needed='qemu-system-x86_64:qemu-system-x86 busybox:busybox-static nft:nftables conntrack:conntrack ip:iproute2
  ping:iputils-ping iperf3:iperf3 socat:socat modprobe:kmod cpio:cpio xz:xz-utils dash:dash
  wg:wireguard-tools bpftool:bpftool'

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH LC_ALL=C DEBIAN_FRONTEND=noninteractive

die() {
  echo "lab: $*" >&2
  exit 1
}

case $kernel in
  5.10) suite=bullseye ;;
  6.1) suite=bookworm ;;
  6.12) suite=trixie ;;
  *) die "IPIPOU_LAB_KERNEL is 5.10, 6.1 or 6.12, not $kernel" ;;
esac

# Debian 12's qemu brings virtiofsd along, from Debian 13 on it is a package of its own.
have_virtiofsd() { [ -x /usr/lib/qemu/virtiofsd ] || [ -x /usr/libexec/virtiofsd ]; }

# A shell of busybox's is not enough for the initramfs: it must need no library.
have_static_busybox() { dpkg-query -W -f='${Status}' busybox-static 2>/dev/null | grep -q ' installed$'; }

missing_packages() {
  for pair in $needed; do
    command -v "${pair%%:*}" >/dev/null || printf '%s ' "${pair#*:}"
  done
  have_static_busybox || printf 'busybox-static '
}

have_kernel() {
  [ "$(cat "$cache/recipe" 2>/dev/null)" = "$recipe" ] &&
    [ -s "$cache/vmlinuz" ] && [ -s "$cache/initramfs" ] && [ -d "$cache/modules" ] &&
    grep -qF "$kernel." "$cache/release"
}

is_ready() { have_kernel && [ -z "$(missing_packages)" ] && have_virtiofsd; }

say_ready() { echo "lab: ready, kernel $(cat "$cache/release") in $cache"; }

# Runs a command with its output in the log, which is shown only if it fails.
quietly() {
  echo "+ $*" >>"$log"
  "$@" >>"$log" 2>&1 </dev/null
}

must() {
  quietly "$@" && return
  tail -n 20 "$log" >&2
  die "failed: $* (all of it: $log)"
}

# A fresh machine or container has no package lists or old ones: fetch them only when the first try fails.
apt_try() {
  quietly "$@" && return
  must apt-get -qq update
  must "$@"
}

install_packages() {
  packages=$(missing_packages)
  if [ -n "$packages" ]; then
    echo "lab: installing $packages"
    # shellcheck disable=SC2086 # a list of words
    apt_try apt-get -qq install -y --no-install-recommends $packages
  fi
  have_virtiofsd || apt_try apt-get -qq install -y --no-install-recommends virtiofsd
  have_virtiofsd || die "no virtiofsd in /usr/lib/qemu or /usr/libexec"
}

# shellcheck source=/dev/null
is_own_release() { (. /etc/os-release && [ "${VERSION_CODENAME-}" = "$suite" ]); }

# Another release's packages are found with lists of the lab's own, so that the machine's apt never offers them.
make_lists() {
  mkdir -p "$work/apt/etc/apt/preferences.d" "$work/apt/var/lib/apt/lists/partial" "$work/apt/var/lib/dpkg"
  : >"$work/apt/var/lib/dpkg/status" # or what is installed here counts as newest
  options="[arch=amd64 target=Packages signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
  for source in "debian $suite" "debian-security $suite-security"; do
    echo "deb $options http://deb.debian.org/$source main"
  done >"$work/apt/etc/apt/sources.list"
}

# apt's own user can't write to where the lab downloads; without Sandbox::User it warns about that. An old release's
# lists are no longer signed anew, hence Check-Valid-Until.
kernel_apt() {
  tool=$1
  shift
  if is_own_release; then
    "$tool" -q -o APT::Sandbox::User=root "$@"
  else
    "$tool" -q -o APT::Sandbox::User=root -o Dir="$work/apt" -o APT::Default-Release= \
      -o Acquire::Check-Valid-Until=false "$@"
  fi
}

# linux-image-cloud-amd64 is an empty package that depends on the image of the day.
image_package() {
  kernel_apt apt-cache depends linux-image-cloud-amd64 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | grep -F "linux-image-$kernel." | head -n 1
}

# Debian takes old releases from its mirrors one day, and then this is where it is noticed.
no_kernel() { die "no kernel $kernel from Debian's $suite: $1; $(grep '^[EW]:' "$log" | head -n 1) (all of it: $log)"; }

fetch_kernel() {
  if ! is_own_release; then make_lists; fi
  package=$(image_package)
  if [ -z "$package" ]; then
    # One of a release's two lists is enough.
    quietly kernel_apt apt-get update || :
    package=$(image_package)
  fi
  [ -n "$package" ] || no_kernel "apt knows no linux-image-cloud-amd64"
  echo "lab: downloading $package"
  cd "$work"
  if ! quietly kernel_apt apt-get download "$package"; then
    quietly kernel_apt apt-get update || :
    package=$(image_package)
    quietly kernel_apt apt-get download "$package" || no_kernel "apt can't download $package"
  fi
  must dpkg -x "$work"/linux-image-*.deb "$work/root"
  # Not a glob on /lib: merged-/usr images have their modules in /usr/lib.
  for dir in "$work"/root/lib/modules/* "$work"/root/usr/lib/modules/*; do
    [ -d "$dir/kernel" ] && break
  done
  [ -d "$dir/kernel" ] || die "$package has no modules"
  release=${dir##*/}
  mkdir -p "$work/base/lib/modules"
  mv "$dir" "$work/base/lib/modules/"
  must depmod -b "$work/base" "$release"
}

# The initramfs needs only what it takes to reach the host's root; the rest is loaded from there.
build_initramfs() {
  init=$work/initramfs
  mkdir -p "$init/bin" "$init/modules" "$init/proc" "$init/sys" "$init/dev" "$init/host" "$init/mem" "$init/root"
  cp "$(command -v busybox)" "$init/bin/busybox"
  # Numbered, for the order matters: each module after those it depends on.
  number=10
  modprobe -d "$work/base" -S "$release" --show-depends -a virtio_pci virtio_console virtiofs overlay |
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/order"
  while read -r module; do
    name=${module##*/}
    cp "$module" "$init/modules/$number-$name"
    number=$((number + 1))
  done <"$work/order"
  [ "$number" -gt 10 ] || die "modprobe named no modules for the initramfs"
  for module in "$init"/modules/*.xz; do
    if [ -e "$module" ]; then must xz -d "$module"; fi
  done
  cat >"$init/init" <<'INIT'
#!/bin/busybox sh
# Makes the host's root, read-only, and a tmpfs over it the root, then runs the job's own init in it.
# switch_root and not chroot: the kernel looks for modprobe in the root of its first process.
PATH=/bin
busybox mount -t proc proc /proc # where busybox finds itself to link to
busybox --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
fail() { echo "lab-init: $*" >/dev/console; sync; poweroff -f; }
for module in /modules/*; do
  insmod "$module" || fail "insmod $module"
done
mount -t virtiofs -o ro host /host || fail "mount the host's root"
mount -t tmpfs -o size=75% tmpfs /mem || fail "mount tmpfs"
mkdir /mem/upper /mem/work
mount -t overlay -o lowerdir=/host,upperdir=/mem/upper,workdir=/mem/work overlay /root || fail "mount overlay"
for option in $(cat /proc/cmdline); do
  case $option in
    lab.modules=*) modules=${option#*=} ;;
    lab.init=*) init=${option#*=} ;;
  esac
done
mkdir -p /root/lib/modules /root/proc /root/sys /root/dev /root/run
mount --bind "/host$modules" /root/lib/modules || fail "bind the modules"
for dir in proc sys dev; do mount --move /$dir /root/$dir; done
exec switch_root /root /bin/sh "$init"
INIT
  chmod 755 "$init/init"
  # Without compression: the emulated machine would take longer to unpack it than to read it.
  (cd "$init" && find . | cpio -o -H newc -R 0:0 --quiet) >"$work/initramfs.cpio"
}

# Into place only when whole: an interrupted run leaves no half cache that looks ready.
put_in_place() {
  rm -f "$cache/recipe"
  rm -rf "$cache/modules"
  mv "$work/base/lib/modules" "$cache/modules"
  cp "$work"/root/boot/vmlinuz-* "$cache/vmlinuz"
  mv "$work/initramfs.cpio" "$cache/initramfs"
  echo "$release" >"$cache/release"
  echo "$recipe" >"$cache/recipe"
}

if is_ready; then
  say_ready
  exit
fi
[ "$(id -u)" = 0 ] || die "must be root to set up"
[ "$(uname -m)" = x86_64 ] || die "wants an x86_64 host, this is $(uname -m)"
command -v apt-get >/dev/null || die "wants Debian: no apt-get here"
mkdir -p "$cache"
# Test packages run in parallel: one sets up, the others wait and find it done.
exec 9>"$top/lock"
flock 9
if is_ready; then
  say_ready
  exit
fi
: >"$log"
work=$cache/setup.$$
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$work"
install_packages
if ! have_kernel; then
  fetch_kernel
  build_initramfs
  put_in_place
fi
say_ready
