#!/bin/sh
# [[tunnel]]
# server = true
# number = 0
# backend = "bpf"
# mode = "ipip"
# encap = "fou"
# tunl-dev = "ipipou0"
# tunl-ip = ["172.28.0.0"]
# tunl-peer-ip = ["172.28.0.1"]
# routes = ["10.1.0.0/24"]
# fou-dev = "s0"
# fou-local-port = 10000
# auth-by-remote-ip = false
# auth-by-remote-port = false
# auth-lifetime = 60
# reply-on-auth-ok = false
# auth-remote-pubkey-b64 = "eQYNhD/Xwl6Zaq+z3QXDzNI77x8CEKqY1n5kt9bKeEI="
# # auth-secret is set; --with-secrets shows it
# [[tunnel]]
# server = true
# number = 1
# backend = "bpf"
# mode = "ipip"
# encap = "fou"
# tunl-dev = "ipipou0"
# tunl-ip = ["172.28.0.0"]
# tunl-peer-ip = ["172.28.0.3"]
# routes = ["0.0.0.0/0"]
# fou-dev = "s0"
# fou-local-port = 10000
# auth-by-remote-ip = false
# auth-by-remote-port = false
# reply-on-auth-ok = false
# # auth-token is set; --with-secrets shows it
set -u
NAME=office
JOURNAL=${IPIPOU_RUN_DIR:-/run/ipipou}/$NAME.undo
ERR=
INTERRUPTED=
LATE=
export LC_ALL=C
set -f

say() { printf '%s: %s\n' "$NAME" "$1" >&2; }
die() {
	say "$2"
	exit "$1"
}

# A shell of busybox's may take its own `ip` for the one in PATH; that one knows
# no FOU.
find_ip() {
	for IP in ip $(
		IFS=:
		# shellcheck disable=SC2086 # the words are wanted
		printf '%s/ip ' $PATH
	); do
		case $(command "$IP" -V 2>/dev/null) in *iproute2*) return ;; esac
	done
	die 52 'ip of iproute2 is not installed, or not in PATH'
}
ip() { command "$IP" "$@"; }

# run COMMAND...: print it, run it, keep its errors in ERR. Ctrl-C is for us, not
# for the command: one that is half done must get done before it is undone.
run() {
	printf '[#] %s\n' "$*" >&2
	ERR=$(
		trap '' INT TERM HUP
		"$@" 2>&1 >/dev/null
	)
}

# try UNDO COMMAND...: run a step, its undo noted before it. A step that failed
# has nothing to undo. What may be there already is noted when it is known to be ours.
try() {
	undo=$1 late=$LATE LATE=
	shift
	STEP=$*
	stop_if_interrupted
	[ -z "$undo" ] || [ -n "$late" ] || note "$undo"
	if run "$@"; then
		[ -z "$late" ] || note "$undo"
		return 0
	fi
	[ -z "$undo" ] || [ -n "$late" ] || drop "$undo"
	return 1
}

# taken 'LINE|LINE...' COMMAND...: what the next step makes may be somebody else's, if
# the command prints one of these lines.
taken() { if prints "$@"; then LATE=y; else LATE=; fi; }

quiet() { "$@" >/dev/null 2>&1; }

# needed COMMAND...: it prints who still needs what would be undone.
needed() { [ -n "$("$@" 2>/dev/null)" ]; }

# absent WORDS 'LINE|LINE...' COMMAND...: the command must not print what it looks for.
absent() {
	ERR=$1 unwanted=$2
	shift 2
	STEP=$*
	! prints "$unwanted" "$@"
}

# Known ways for a step to fail.
exists() {
	case $ERR in
	*"File exists"* | *"Address already in use"* | *"already assigned"* | *"Operation already in progress"* | *"Exclusivity flag on"*) return 0 ;;
	esac
	return 1
}
unsupported() {
	case $ERR in
	*"unknown command"* | *"Invalid argument"*) return 0 ;;
	esac
	return 1
}
gone() {
	case $ERR in *"No such file or directory"*) return 0 ;; esac
	return 1
}

# prints 'LINE|LINE...' COMMAND...: the command prints one of these lines; * at
# the end of one stands for anything.
prints() {
	lines="$1|"
	shift
	"$@" 2>/dev/null | {
		while read -r line; do
			left=$lines
			while [ -n "$left" ]; do
				want=${left%%|*}
				left=${left#*|}
				case $want in
				*'*') case $line in "${want%?}"*) exit 0 ;; esac ;;
				"$line") exit 0 ;;
				esac
			done
		done
		exit 1
	}
}

# word N COMMAND...: the Nth word of the first line, without what follows a slash.
word() {
	n=$1
	shift
	"$@" 2>/dev/null | {
		read -r line || exit 0
		set -f
		# shellcheck disable=SC2086 # the words are wanted
		set -- $line
		[ $# -ge "$n" ] || exit 0
		shift $((n - 1))
		printf '%s' "${1%%/*}"
	}
}

# The journal: a line for each undo that is pending (a function and its
# arguments), and VAR=value lines.
note() {
	[ -d "${JOURNAL%/*}" ] || mkdir -p "${JOURNAL%/*}" || exit 1
	printf '%s\n' "$1" >>"$JOURNAL" || exit 1
}
pending() {
	[ -f "$JOURNAL" ] || return 1
	while read -r entry; do
		[ "${entry%% *}" != "$1" ] || return 0
	done <"$JOURNAL"
	return 1
}
# drop ENTRY: forget an entry, the last one of its function.
drop() {
	keep='' last='' rest=''
	while read -r entry; do
		if [ "${entry%% *}" = "${1%% *}" ]; then
			keep=$keep$last$rest rest=''
			last="$entry
"
		else
			rest="$rest$entry
"
		fi
	done <"$JOURNAL"
	printf '%s' "$keep$rest" >"$JOURNAL"
}
set_var() {
	keep=
	[ ! -f "$JOURNAL" ] || while read -r entry; do
		case $entry in "$1="*) ;; *) keep="$keep$entry
" ;; esac
	done <"$JOURNAL"
	printf '%s%s\n' "$keep" "$1=$2" >"$JOURNAL" || exit 1
}
load() {
	[ -f "$JOURNAL" ] || return 0
	while read -r entry; do
		case $entry in
		*=*) eval "[ -n \"\${${entry%%=*}-}\" ] || ${entry%%=*}=\${entry#*=}" ;;
		esac
	done <"$JOURNAL"
}

# A plan is between `begin` and `done_with`; `fail` undoes what it did.
begin() {
	trap 'INTERRUPTED=1' INT TERM HUP
	note ---
}
stop_if_interrupted() {
	[ -z "$INTERRUPTED" ] || {
		ERR=interrupted
		fail 1
	}
}
done_with() {
	stop_if_interrupted
	trap '' INT TERM HUP
	keep=
	while read -r entry; do
		case $entry in
		--- | passing_*) ;;
		*) keep="$keep$entry
" ;;
		esac
	done <"$JOURNAL"
	printf '%s' "$keep" >"$JOURNAL"
}
fail() {
	trap '' INT TERM HUP
	say "${STEP-}: $ERR"
	undo_to ---
	exit "$1"
}

# undo_to MARK: run the undos behind the mark, the last one first, and go on
# past one that fails.
undo_to() {
	bad=0 all=
	while read -r entry; do
		all="$entry
$all"
	done <"$JOURNAL"
	while [ -n "$all" ]; do
		entry=${all%%"
"*}
		all=${all#*"
"}
		[ "$entry" != "$1" ] || break
		case $entry in
		*=* | ---) ;;
		*)
			# shellcheck disable=SC2086 # a function and its arguments
			$entry || {
				say "undo failed: $ERR"
				bad=1
			}
			;;
		esac
		drop "$entry"
	done
	drop "$1"
	[ -s "$JOURNAL" ] || rm -f "$JOURNAL"
	return $bad
}
undo_all() {
	trap '' INT TERM HUP
	[ -s "$JOURNAL" ] || {
		say "is not up"
		return 0
	}
	undo_to ''
}
take_back() {
	pending "$1" || return 0
	taken=$entry
	drop "$1"
	STEP=$taken
	# shellcheck disable=SC2086 # a function and its arguments
	$taken
}

# show COMMAND...: for status.
show() {
	printf '[#] %s\n' "$*"
	"$@" 2>&1 || :
}

# What an address and a port must look like before they get anywhere.
ipv4() {
	rest=$1. bytes=0
	while [ -n "$rest" ]; do
		byte=${rest%%.*} rest=${rest#*.} bytes=$((bytes + 1))
		case $byte in
		'' | *[!0-9]* | ????* | 0?*) bytes=9 ;;
		*) [ "$byte" -le 255 ] || bytes=9 ;;
		esac
	done
	[ "$bytes" -eq 4 ] || die 2 "'$1' is not an IPv4 address"
}
# The kernel knows better; this is so that nothing else gets through.
ipv6() {
	case $1 in *[!0-9a-fA-F:]* | :[!:]* | *[!:]: | *:::* | *::*::*) die 2 "'$1' is not an IPv6 address" ;; *:*:*) return ;; esac
	die 2 "'$1' is not an IPv6 address"
}
port() {
	case $1 in *[!0-9]* | '' | ??????*) die 2 "'$1' is not a port" ;; esac
	if [ "$1" -lt 1 ] || [ "$1" -gt 65535 ]; then die 2 "'$1' is not a port"; fi
}

# peer IP PORT: the peer's outer address.
# shellcheck disable=SC2034 # plans use the variables
peer() {
	ipv4 "$1"
	port "$2"
	PEER_IP=$1 PEER_PORT=$2
}

# unbound DEV: a peer that is bound already has to be moved.
unbound() {
	! quiet ip link show dev "$1" || die 1 "$1 is there already: run $0 rebind IP PORT"
}

# ends DEV: where the peer is now, as the kernel has it.
# shellcheck disable=SC2034,SC2046 # the words are wanted; plans use the variables
ends() {
	OLD_IP='' OLD_PORT='' OLD_LOCAL=''
	set -- "$1" $(ip -d -o link show dev "$1" 2>/dev/null)
	dev=$1
	while [ $# -gt 1 ]; do
		case $1 in
		remote) OLD_IP=$2 ;;
		local) OLD_LOCAL=$2 ;;
		encap-dport) OLD_PORT=$2 ;;
		esac
		shift
	done
	if [ -z "$OLD_IP" ] || [ -z "$OLD_LOCAL" ] || [ -z "$OLD_PORT" ]; then die 1 "$dev is not bound: run $0 bind IP PORT"; fi
}

locked() { "$@"; }
RUN_DIR=${JOURNAL%/*}

# Bytes as bpftool reads them: an address, a number of 16 bits in network order, one
# of 32 in that of a little-endian host.
ip4() {
	left=$1
	while [ "$left" != "${left#*.}" ]; do
		printf '%s ' "${left%%.*}"
		left=${left#*.}
	done
	printf '%s' "$left"
}
be16() { printf '%s %s' $(($1 >> 8)) $(($1 & 255)); }
le32() { printf '%s %s %s %s' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)); }

# number N LESS COMMAND...: the digits that the Nth word begins with, less that much.
number() {
	n=$1 less=$2
	shift 2
	digits=$(word "$n" "$@")
	digits=${digits%%[!0-9]*}
	[ -z "$digits" ] || printf '%s' $((digits - less))
}

# One more known way for a step to fail.
nohelper() {
	case $ERR in *"unknown func"* | *"invalid func"* | *"unknown_func"*) return 0 ;; esac
	return 1
}

# As with find_ip: busybox's own tc knows no clsact.
find_tc() {
	for TC in tc $(
		IFS=:
		# shellcheck disable=SC2086 # the words are wanted
		printf '%s/tc ' $PATH
	); do
		case $(command "$TC" -V 2>/dev/null) in *iproute2*) return ;; esac
	done
	die 54 'tc of iproute2 is not installed, or not in PATH'
}
tc() { command "$TC" "$@"; }

# unpacked COMMAND...: the compiled programs are its input.
unpacked() { object | "$@"; }

# bound NUMBER: the tunnel's peer, as an earlier call noted it.
# shellcheck disable=SC2034 # plans use the variables
bound() {
	eval "was=\${BOUND_$1-}"
	[ -n "$was" ] || die 1 "is not bound: run $0 bind IP PORT"
	OLD_IP=${was% *} OLD_PORT=${was#* }
}

# counters WHOSE NUMBER MAP NAME...: what a peer's counters say, summed over all
# processors.
# shellcheck disable=SC2046,SC2086 # words are wanted
counters() {
	printf '%s:' "$1"
	entry=$(command bpftool map lookup pinned "$3" key $(le32 "$2") 2>/dev/null ||
		command bpftool map lookup id "$COUNTERS_MAP" key $(le32 "$2") 2>&1)
	shift 3
	values='' bytes='' processor=
	for name; do values="$values 0"; done
	while read -r line; do
		case $line in
		value*)
			[ -z "$bytes" ] || values=$(added "$bytes" "$values")
			bytes='' processor=${line%:}
			;;
		*) [ -z "$processor" ] || bytes="$bytes $line" ;;
		esac
	done <<X
$entry
X
	[ -n "$bytes" ] || {
		printf ' %s\n' "$entry"
		return
	}
	values=$(added "$bytes" "$values")
	for name; do
		set -- $values
		printf ' %s %s' "$name" "$1"
		shift
		values=$*
	done
	printf '\n'
}
# added BYTES SUMS: numbers of 64 bits added to the sums so far.
# shellcheck disable=SC2086 # words are wanted
added() {
	sums=$2
	set -- $1
	for sum in $sums; do
		[ $# -ge 8 ] || break
		printf '%s ' $((sum + 0x$8$7$6$5$4$3$2$1))
		shift 8
	done
}

# What the host has to tell. A value in the environment goes before.
facts() {
	# first IPv4 address of s0
	: "${FOU_IP:=$(word 4 ip -4 -o address show dev s0)}"
	[ -n "$FOU_IP" ] || die 2 's0 does not exist or has no IPv4 address: give --fou-local-ip, or another --fou-dev'
	# index of s0
	: "${OUTER_INDEX:=$(number 1 0 ip -o link show dev s0)}"
	[ -n "$OUTER_INDEX" ] || die 2 's0 does not exist: give another --fou-dev'
	# MTU that fits s0's
	: "${TUNL_MTU:=$(number 5 28 ip -o link show dev s0)}"
	[ -n "$TUNL_MTU" ] || die 2 's0 does not exist: give another --fou-dev'
	return 0
}

# What a later call must know of this one.
remember() {
	set_var FOU_IP "$FOU_IP"
	set_var OUTER_INDEX "$OUTER_INDEX"
	set_var TUNL_MTU "$TUNL_MTU"
	set_var DEVICES_MAP "$DEVICES_MAP"
	set_var ENDPOINTS_MAP "$ENDPOINTS_MAP"
	set_var PEERS_MAP "$PEERS_MAP"
	set_var COUNTERS_MAP "$COUNTERS_MAP"
	set_var TUN_INDEX "$TUN_INDEX"
	return 0
}

up() {
	# somebody else's interface of this name is never touched
	absent 'interface ipipou0 exists already' 'ipipou0 *|ipipou0@*' ip -br link show || fail 52
	# the kernel's TUN devices
	quiet test -c /dev/net/tun ||
		try '' modprobe tun || fail 10
	# a BPF file system of the instance's own
	try "undo_up_3 ${RUN_DIR}" mkdir -p "${RUN_DIR}/office.bpf" || fail 1
	try "undo_up_4 ${RUN_DIR}" mount -t bpf -o nosuid,nodev,noexec,mode=700 ipipou "${RUN_DIR}/office.bpf" || fail 1
	# the programs' maps, as large as they have to be
	try '' bpftool map create "${RUN_DIR}/office.bpf/devices" type hash key 4 value 48 entries 2 name devices || fail 54
	try '' bpftool map create "${RUN_DIR}/office.bpf/endpoints" type hash key 8 value 48 entries 8 name endpoints || fail 54
	try '' bpftool map create "${RUN_DIR}/office.bpf/prefixes" type hash key 20 value 4 entries 4 name prefixes || fail 54
	try '' bpftool map create "${RUN_DIR}/office.bpf/peers" type array key 4 value 16 entries 3 name peers || fail 54
	try '' bpftool map create "${RUN_DIR}/office.bpf/seen" type array key 4 value 4 entries 3 name seen || fail 54
	try '' bpftool map create "${RUN_DIR}/office.bpf/counters" type percpu_array key 4 value 104 entries 3 name counters || fail 54
	# the programs
	pending undo_object ||
		try "undo_object ${RUN_DIR}" unpacked dd "of=${RUN_DIR}/office.bpf.o" || fail 1
	try '' bpftool prog loadall "${RUN_DIR}/office.bpf.o" "${RUN_DIR}/office.bpf/programs" map name devices pinned "${RUN_DIR}/office.bpf/devices" map name endpoints pinned "${RUN_DIR}/office.bpf/endpoints" map name prefixes pinned "${RUN_DIR}/office.bpf/prefixes" map name peers pinned "${RUN_DIR}/office.bpf/peers" map name seen pinned "${RUN_DIR}/office.bpf/seen" map name counters pinned "${RUN_DIR}/office.bpf/counters" || {
		if nohelper; then
			ERR='the BPF of this kernel lacks a function that the data path calls (125 is bpf_ktime_get_boot_ns, 152 bpf_redirect_neigh): it takes Linux 5.10 or later, or else the modules ipip and fou, with --backend kernel'
			fail 54
		else
			fail 54
		fi
	}
	take_back undo_object || fail 1
	# bpftool's batches fail at boot as long as there is no randomness, which they don't need
	try '' dd if=/dev/random of=/dev/null bs=1 count=1 || fail 1
	DEVICES_MAP=$(number 1 0 bpftool map show pinned "${RUN_DIR}/office.bpf/devices")
	[ -n "$DEVICES_MAP" ] || {
		STEP="bpftool map show pinned \"${RUN_DIR}/office.bpf/devices\"" ERR='bpftool does not show the map devices'
		fail 54
	}
	ENDPOINTS_MAP=$(number 1 0 bpftool map show pinned "${RUN_DIR}/office.bpf/endpoints")
	[ -n "$ENDPOINTS_MAP" ] || {
		STEP="bpftool map show pinned \"${RUN_DIR}/office.bpf/endpoints\"" ERR='bpftool does not show the map endpoints'
		fail 54
	}
	PEERS_MAP=$(number 1 0 bpftool map show pinned "${RUN_DIR}/office.bpf/peers")
	[ -n "$PEERS_MAP" ] || {
		STEP="bpftool map show pinned \"${RUN_DIR}/office.bpf/peers\"" ERR='bpftool does not show the map peers'
		fail 54
	}
	COUNTERS_MAP=$(number 1 0 bpftool map show pinned "${RUN_DIR}/office.bpf/counters")
	[ -n "$COUNTERS_MAP" ] || {
		STEP="bpftool map show pinned \"${RUN_DIR}/office.bpf/counters\"" ERR='bpftool does not show the map counters'
		fail 54
	}
	# ipipou0: a TUN device, whose packets the program takes; no process reads it
	try undo_up_19 ip tuntap add dev ipipou0 mode tun || fail 52
	TUN_INDEX=$(number 1 0 ip -o link show dev ipipou0)
	[ -n "$TUN_INDEX" ] || {
		STEP='ip -o link show dev ipipou0' ERR='ipipou0 has no index'
		fail 52
	}
	try '' tc qdisc add dev ipipou0 clsact || fail 54
	try '' tc filter add dev ipipou0 egress pref 17280 handle 0x55475d19 bpf direct-action object-pinned "${RUN_DIR}/office.bpf/programs/egress" || fail 54
	# what the programs must know: interfaces, where their packets arrive, networks and peers
	try '' bpftool batch file - <<EOF || fail 54
map update pinned ${RUN_DIR}/office.bpf/devices key $(le32 "${TUN_INDEX}") value $(le32 "${TUN_INDEX}") $(le32 "${OUTER_INDEX}") $(ip4 "${FOU_IP}") 39 16 1 0 0 0 1 0 0 0 0 0 32 24 0 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255
map update pinned ${RUN_DIR}/office.bpf/endpoints key 0 0 0 0 39 16 17 0 value $(le32 "${TUN_INDEX}") $(le32 "${OUTER_INDEX}") $(ip4 "${FOU_IP}") 39 16 1 0 0 0 1 0 0 0 0 0 32 24 0 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255
map update pinned ${RUN_DIR}/office.bpf/prefixes key 1 0 4 32 172 28 0 1 0 0 0 0 0 0 0 0 0 0 0 0 value 1 0 0 0
map update pinned ${RUN_DIR}/office.bpf/prefixes key 1 0 4 24 10 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 value 1 0 0 0
map update pinned ${RUN_DIR}/office.bpf/prefixes key 1 0 4 32 172 28 0 3 0 0 0 0 0 0 0 0 0 0 0 0 value 2 0 0 0
map update pinned ${RUN_DIR}/office.bpf/prefixes key 1 0 4 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 value 2 0 0 0
EOF
	# inner addresses of both ends
	try '' ip address add 172.28.0.0 peer 172.28.0.1 dev ipipou0 || fail 51
	try '' ip link set dev ipipou0 mtu "${TUNL_MTU}" up || fail 52
	# inner addresses of both ends
	try '' ip address add 172.28.0.0 peer 172.28.0.3 dev ipipou0 || fail 51
	# where s0's filters are, if there are none yet
	pending undo_clsact_0 ||
		taken 'qdisc clsact *' tc qdisc show dev s0
	pending undo_clsact_0 ||
		try undo_clsact_0 tc qdisc add dev s0 clsact || {
		if exists; then
			say 's0 has a queueing discipline for filters already: it is used, and will stay'
		else
			fail 54
		fi
	}
	# the gate, and the way in: what bound peers send goes to the tunnel, what else comes to the port is dropped
	pending undo_ingress_0 ||
		try undo_ingress_0 tc filter add dev s0 ingress protocol all pref 17280 handle 0x55475d19 bpf direct-action object-pinned "${RUN_DIR}/office.bpf/programs/ingress" || fail 54
	return 0
}

bind_0() {
	UPTIME=$(number 1 0 cat /proc/uptime)
	[ -n "$UPTIME" ] || {
		STEP='cat /proc/uptime' ERR='/proc/uptime can'\''t be read'
		fail 1
	}
	# the peer's packets come in, and the tunnel's go there
	try "passing_undo_bind_0_2 ${RUN_DIR}" bpftool batch file - <<EOF || {
map update pinned ${RUN_DIR}/office.bpf/peers key 1 0 0 0 value $(ip4 "${PEER_IP}") $(be16 "${PEER_PORT}") 0 0 $(le32 "${UPTIME}") 60 0 0 0
EOF
		if gone; then
			say 'the pinned maps are in another mount namespace: they are known by their ids'
			bind_0_or_2_1
		else
			fail 54
		fi
	}
	# network behind the other end
	try passing_undo_bind_0_3 ip route add 10.1.0.0/24 dev ipipou0 || fail 1
	return 0
}

bind_0_or_2_1() {
	try "passing_undo_bind_0_or_2_1_1 ${PEERS_MAP}" bpftool batch file - <<EOF || fail 54
map update id ${PEERS_MAP} key 1 0 0 0 value $(ip4 "${PEER_IP}") $(be16 "${PEER_PORT}") 0 0 $(le32 "${UPTIME}") 60 0 0 0
EOF
	return 0
}

rebind_0() {
	UPTIME=$(number 1 0 cat /proc/uptime)
	[ -n "$UPTIME" ] || {
		STEP='cat /proc/uptime' ERR='/proc/uptime can'\''t be read'
		fail 1
	}
	# the peer is at its new address, and no more at the old one
	try "passing_undo_rebind_0_2 ${RUN_DIR} ${OLD_IP} ${OLD_PORT} ${UPTIME}" bpftool batch file - <<EOF || {
map update pinned ${RUN_DIR}/office.bpf/peers key 1 0 0 0 value $(ip4 "${PEER_IP}") $(be16 "${PEER_PORT}") 0 0 $(le32 "${UPTIME}") 60 0 0 0
EOF
		if gone; then
			say 'the pinned maps are in another mount namespace: they are known by their ids'
			rebind_0_or_2_1
		else
			fail 54
		fi
	}
	return 0
}

rebind_0_or_2_1() {
	try "passing_undo_rebind_0_or_2_1_1 ${PEERS_MAP} ${OLD_IP} ${OLD_PORT} ${UPTIME}" bpftool batch file - <<EOF || fail 54
map update id ${PEERS_MAP} key 1 0 0 0 value $(ip4 "${PEER_IP}") $(be16 "${PEER_PORT}") 0 0 $(le32 "${UPTIME}") 60 0 0 0
EOF
	return 0
}

bind_1() {
	# the peer's packets come in, and the tunnel's go there
	try "passing_undo_bind_1_1 ${RUN_DIR}" bpftool batch file - <<EOF || {
map update pinned ${RUN_DIR}/office.bpf/peers key 2 0 0 0 value $(ip4 "${PEER_IP}") $(be16 "${PEER_PORT}") 0 0 0 0 0 0 0 0 0 0
EOF
		if gone; then
			say 'the pinned maps are in another mount namespace: they are known by their ids'
			bind_1_or_1_1
		else
			fail 54
		fi
	}
	# what would carry the tunnel's own packets has a table of its own
	try passing_undo_bind_1_2 ip route add default dev ipipou0 table 10001 || fail 1
	# the tunnel's own packets don't go through the tunnel
	pending undo_outer_rule_to_1 ||
		try "undo_outer_rule_to_1 ${PEER_IP}" ip -4 rule add to "${PEER_IP}" lookup main pref 29003 || fail 1
	# nor what is sent from the outer address
	pending undo_outer_rule_from_1 ||
		try "undo_outer_rule_from_1 ${FOU_IP}" ip -4 rule add from "${FOU_IP}" lookup main pref 29003 || fail 1
	# what has a route of its own, longer than the tunnel's, keeps it
	try undo_bind_1_5 ip -4 rule add lookup main suppress_prefixlength 0 pref 29004 || fail 1
	# all the rest goes through the tunnel
	try undo_bind_1_6 ip -4 rule add lookup 10001 pref 29005 || fail 1
	return 0
}

bind_1_or_1_1() {
	try "passing_undo_bind_1_or_1_1_1 ${PEERS_MAP}" bpftool batch file - <<EOF || fail 54
map update id ${PEERS_MAP} key 2 0 0 0 value $(ip4 "${PEER_IP}") $(be16 "${PEER_PORT}") 0 0 0 0 0 0 0 0 0 0
EOF
	return 0
}

rebind_1() {
	# the peer is at its new address, and no more at the old one
	try "passing_undo_rebind_1_1 ${RUN_DIR} ${OLD_IP} ${OLD_PORT}" bpftool batch file - <<EOF || {
map update pinned ${RUN_DIR}/office.bpf/peers key 2 0 0 0 value $(ip4 "${PEER_IP}") $(be16 "${PEER_PORT}") 0 0 0 0 0 0 0 0 0 0
EOF
		if gone; then
			say 'the pinned maps are in another mount namespace: they are known by their ids'
			rebind_1_or_1_1
		else
			fail 54
		fi
	}
	take_back undo_outer_rule_to_1 || :
	take_back undo_outer_rule_from_1 || :
	# the tunnel's own packets don't go through the tunnel
	pending undo_outer_rule_to_1 ||
		try "undo_outer_rule_to_1 ${PEER_IP}" ip -4 rule add to "${PEER_IP}" lookup main pref 29003 || fail 1
	# nor what is sent from the outer address
	pending undo_outer_rule_from_1 ||
		try "undo_outer_rule_from_1 ${FOU_IP}" ip -4 rule add from "${FOU_IP}" lookup main pref 29003 || fail 1
	return 0
}

rebind_1_or_1_1() {
	try "passing_undo_rebind_1_or_1_1_1 ${PEERS_MAP} ${OLD_IP} ${OLD_PORT}" bpftool batch file - <<EOF || fail 54
map update id ${PEERS_MAP} key 2 0 0 0 value $(ip4 "${PEER_IP}") $(be16 "${PEER_PORT}") 0 0 0 0 0 0 0 0 0 0
EOF
	return 0
}

# Undos, run in reverse order of their steps.
passing_undo_bind_0_2() {
	run bpftool batch file - <<EOF
map update pinned ${1}/office.bpf/peers key 1 0 0 0 value 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
EOF
}
passing_undo_bind_0_3() {
	run ip route del 10.1.0.0/24 dev ipipou0
}
passing_undo_bind_0_or_2_1_1() {
	run bpftool batch file - <<EOF
map update id ${1} key 1 0 0 0 value 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
EOF
}
passing_undo_bind_1_1() {
	run bpftool batch file - <<EOF
map update pinned ${1}/office.bpf/peers key 2 0 0 0 value 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
EOF
}
passing_undo_bind_1_2() {
	run ip route del default dev ipipou0 table 10001
}
passing_undo_bind_1_or_1_1_1() {
	run bpftool batch file - <<EOF
map update id ${1} key 2 0 0 0 value 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
EOF
}
passing_undo_rebind_0_2() {
	run bpftool batch file - <<EOF
map update pinned ${1}/office.bpf/peers key 1 0 0 0 value $(ip4 "${2}") $(be16 "${3}") 0 0 $(le32 "${4}") 60 0 0 0
EOF
}
passing_undo_rebind_0_or_2_1_1() {
	run bpftool batch file - <<EOF
map update id ${1} key 1 0 0 0 value $(ip4 "${2}") $(be16 "${3}") 0 0 $(le32 "${4}") 60 0 0 0
EOF
}
passing_undo_rebind_1_1() {
	run bpftool batch file - <<EOF
map update pinned ${1}/office.bpf/peers key 2 0 0 0 value $(ip4 "${2}") $(be16 "${3}") 0 0 0 0 0 0 0 0 0 0
EOF
}
passing_undo_rebind_1_or_1_1_1() {
	run bpftool batch file - <<EOF
map update id ${1} key 2 0 0 0 value $(ip4 "${2}") $(be16 "${3}") 0 0 0 0 0 0 0 0 0 0
EOF
}
undo_bind_1_5() {
	run ip -4 rule del lookup main suppress_prefixlength 0 pref 29004
}
undo_bind_1_6() {
	run ip -4 rule del lookup 10001 pref 29005
}
undo_clsact_0() {
	! quiet ip link show dev s0 || needed tc filter show dev s0 ingress || needed tc filter show dev s0 egress || run tc qdisc del dev s0 clsact
}
undo_ingress_0() {
	! quiet tc filter get dev s0 ingress protocol all pref 17280 handle 0x55475d19 bpf || run tc filter del dev s0 ingress protocol all pref 17280 handle 0x55475d19 bpf
}
undo_object() {
	run rm -f "${1}/office.bpf.o"
}
undo_outer_rule_from_1() {
	run ip -4 rule del from "${1}" lookup main pref 29003
}
undo_outer_rule_to_1() {
	run ip -4 rule del to "${1}" lookup main pref 29003
}
undo_up_19() {
	run ip link del dev ipipou0
}
undo_up_3() {
	run rmdir "${1}/office.bpf"
}
undo_up_4() {
	! quiet mountpoint -q "${RUN_DIR}/office.bpf" || run umount "${1}/office.bpf"
}

# The compiled BPF programs (datapath/ipipou.bpf.c), gzip in base64.
object() {
	base64 -d <<'EOF' | gzip -dc
H4sI
EOF
}

status() {
	show ip -d -s link show dev ipipou0
	show ip address show dev ipipou0
	show ip route show dev ipipou0 table all
	show tc -s filter show dev s0 ingress
	[ -s "$JOURNAL" ] || return 0
	counters 'ipipou0 peer 0' 1 "${RUN_DIR}/office.bpf/counters" rx-packets rx-bytes tx-packets tx-bytes stranger source expired no-data fragment congested no-route too-big failed
	counters 'ipipou0 peer 1' 2 "${RUN_DIR}/office.bpf/counters" rx-packets rx-bytes tx-packets tx-bytes stranger source expired no-data fragment congested no-route too-big failed
	counters nobody 0 "${RUN_DIR}/office.bpf/counters" rx-packets rx-bytes tx-packets tx-bytes stranger source expired no-data fragment congested no-route too-big failed
}

op_up() {
	[ ! -s "$JOURNAL" ] || die 1 "$NAME is up already, says $JOURNAL: run $0 down"
	facts
	begin
	up
	remember
	done_with
}
op_down() { undo_all || exit 200; }

op_bind_0() {
	peer "${1-}" "${2-}"
	facts
	[ -z "${BOUND_0-}" ] || die 1 'ipipou0 is bound already: rebind it'
	begin
	bind_0
	set_var BOUND_0 "$PEER_IP $PEER_PORT"
	done_with
}
op_move_0() {
	peer "${1-}" "${2-}"
	facts
	bound 0
	begin
	rebind_0
	set_var BOUND_0 "$PEER_IP $PEER_PORT"
	done_with
}

op_bind_1() {
	peer "${1-}" "${2-}"
	facts
	[ -z "${BOUND_1-}" ] || die 1 'ipipou0 is bound already: rebind it'
	begin
	bind_1
	set_var BOUND_1 "$PEER_IP $PEER_PORT"
	done_with
}
op_move_1() {
	peer "${1-}" "${2-}"
	facts
	bound 1
	begin
	rebind_1
	set_var BOUND_1 "$PEER_IP $PEER_PORT"
	done_with
}

usage() { die 2 "usage: $0 up | down | bind IP PORT [NUMBER] | rebind IP PORT [NUMBER] | status"; }

find_ip
load
find_tc
case ${1-} in
up|down)
	[ $# -eq 1 ] || usage
	locked "op_$1"
	;;
bind|rebind)
	[ $# -le 4 ] || usage
	[ -s "$JOURNAL" ] || die 1 "$NAME is not up: run $0 up"
	case ${4-0} in
	0)
		case $1 in
		bind) locked op_bind_0 "${2-}" "${3-}" ;;
		*) locked op_move_0 "${2-}" "${3-}" ;;
		esac
		;;
	1)
		case $1 in
		bind) locked op_bind_1 "${2-}" "${3-}" ;;
		*) locked op_move_1 "${2-}" "${3-}" ;;
		esac
		;;
	*) die 2 "no tunnel ${4-}" ;;
	esac
	;;
status) status ;;
*) usage ;;
esac
