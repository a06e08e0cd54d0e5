#!/bin/sh
# [[tunnel]]
# server = true
# number = 0
# mode = "ipip"
# encap = "fou"
# tunl-dev = "ipipou0"
# tunl-ip = ["172.28.0.0"]
# tunl-peer-ip = ["172.28.0.1"]
# fou-dev = "s0"
# fou-local-port = 10000
# fou-local-ip-alt = "172.29.0.0"
# force-fou-local-ip-alt = false
# nft-table = "ipipou0"
# no-nft-counter = false
# auth-by-remote-ip = false
# auth-by-remote-port = false
# reply-on-auth-ok = false
# auth-remote-pubkey-b64 = "eQYNhD/Xwl6Zaq+z3QXDzNI77x8CEKqY1n5kt9bKeEI="
# # auth-secret is set; --with-secrets shows it
set -u
NAME=ipipou0
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

# What the host has to tell. A value in the environment goes before.
facts() {
	# first IPv4 address of s0
	: "${FOU_IP:=$(word 4 ip -4 -o address show dev s0)}"
	[ -n "$FOU_IP" ] || die 2 's0 does not exist or has no IPv4 address: give --fou-local-ip, or another --fou-dev'
	return 0
}

# What a later call must know of this one.
remember() {
	set_var FOU_IP "$FOU_IP"
	return 0
}

up() {
	# the kernel's fou, unless it is there already
	quiet ip fou show ||
		try '' modprobe fou || fail 10
	# the kernel's ipip, unless it is there already
	quiet test -d /sys/module/ipip ||
		try '' modprobe ipip || fail 10
	# somebody else's interface of this name is never touched
	absent 'interface ipipou0 exists already' 'ipipou0 *|ipipou0@*' ip -br link show || fail 52
	# the gate: closed to everybody until a peer has authenticated
	pending undo_gate ||
		taken 'table ip ipipou0' nft list tables
	pending undo_gate ||
		try undo_gate nft -f - <<EOF || fail 40
create table ip ipipou0
table ip ipipou0 {
	set fou {
		type ipv4_addr . inet_service
		elements = {
			${FOU_IP} . 10000,
			172.29.0.0 . 10000,
		}
	}
	map peers {
		type ipv4_addr . inet_service . ipv4_addr . inet_service : verdict
		size 68
	}
	map alt_in {
		type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr
	}
	map alt_out {
		type ipv4_addr . inet_service : ipv4_addr
		elements = {
			172.29.0.0 . 10000 : ${FOU_IP},
		}
	}
	set bare {
		type ipv4_addr . ipv4_addr
	}
	chain pass {
		counter
	}
	chain alternate {
		ip daddr set ip daddr . udp dport . ip saddr . udp sport map @alt_in
		goto pass
	}
	chain gate {
		type filter hook prerouting priority raw; policy accept;
		ip daddr . udp dport . ip saddr . udp sport vmap @peers
		ip daddr . udp dport @fou counter drop
		ip protocol 4 ip saddr . ip daddr @bare counter drop
	}
}
EOF
	# its packets are not for connection tracking, if anything here is tracked
	! quiet grep -qs '[1-9]' /proc/sys/net/netfilter/nf_conntrack_count ||
		try '' nft -f - <<EOF || :
insert rule ip ipipou0 pass notrack
table ip ipipou0 {
	chain out {
		type filter hook output priority raw; policy accept;
		ip saddr . udp sport @fou notrack
	}
}
EOF
	# what comes to the FOU port is taken out of its UDP
	pending undo_listener_0 ||
		taken "port 10000 ipproto 4|port 10000 ipproto 4 local ${FOU_IP}|port 10000 ipproto 4 local ${FOU_IP} *" ip fou show
	pending undo_listener_0 ||
		try "undo_listener_0 ${FOU_IP}" ip fou add port 10000 ipproto 4 local "${FOU_IP}" dev s0 || {
		if exists && prints "port 10000 ipproto 4|port 10000 ipproto 4 local ${FOU_IP}|port 10000 ipproto 4 local ${FOU_IP} dev *" ip fou show; then
			say 'a FOU listener on port 10000 exists already: it is used, and will stay'
		elif unsupported; then
			say 'this kernel or iproute2 can'\''t bind a FOU listener to one address: the listener is on all'
			up_or_6_2
		else
			fail 53
		fi
	}
	return 0
}

up_or_6_2() {
	# FOU listener in the form that older kernels and iproute2 know
	pending undo_plain_listener_0 ||
		try undo_plain_listener_0 ip fou add port 10000 ipproto 4 || {
		if exists && prints "port 10000 ipproto 4|port 10000 ipproto 4 local ${FOU_IP}|port 10000 ipproto 4 local ${FOU_IP} dev *" ip fou show; then
			say 'a FOU listener on port 10000 exists already: it is used, and will stay'
		else
			fail 53
		fi
	}
	return 0
}

bind_0() {
	# ipipou0: the tunnel to the peer
	try undo_bind_0_1 ip link add name ipipou0 type ipip remote "${PEER_IP}" local "${FOU_IP}" encap fou encap-sport 10000 encap-dport "${PEER_PORT}" mode ipip dev s0 || {
		if exists; then
			say 'another tunnel has these two outer addresses already: using the alternate local address 172.29.0.0'
			bind_0_or_1_1
			return
		else
			fail 52
		fi
	}
	# inner addresses of both ends
	try '' ip address add 172.28.0.0 peer 172.28.0.1 dev ipipou0 || fail 51
	# open the gate to the peer
	try "passing_undo_bind_0_3 ${FOU_IP} ${PEER_IP} ${PEER_PORT}" nft -f - <<EOF || fail 40
add element ip ipipou0 bare { ${PEER_IP} . ${FOU_IP} }
add element ip ipipou0 peers { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : goto pass }
EOF
	try '' ip link set dev ipipou0 up || fail 52
	return 0
}

bind_0_or_1_1() {
	# alternate local address; nft rewrites it, it is never seen outside
	pending undo_alternate_address_0 ||
		taken '*' ip -4 -o address show to 172.29.0.0/32
	pending undo_alternate_address_0 ||
		try undo_alternate_address_0 ip address add 172.29.0.0/32 scope global dev s0 || {
		if exists; then
			say 'the alternate local address 172.29.0.0 exists already: it is used, and will stay'
		else
			fail 51
		fi
	}
	# what comes to the FOU port is taken out of its UDP
	pending undo_alternate_listener_0 ||
		taken 'port 10000 ipproto 4|port 10000 ipproto 4 local 172.29.0.0|port 10000 ipproto 4 local 172.29.0.0 *' ip fou show
	pending undo_alternate_listener_0 ||
		try undo_alternate_listener_0 ip fou add port 10000 ipproto 4 local 172.29.0.0 dev s0 || {
		if exists && prints 'port 10000 ipproto 4|port 10000 ipproto 4 local 172.29.0.0|port 10000 ipproto 4 local 172.29.0.0 dev *' ip fou show; then
			say 'a FOU listener on port 10000 exists already: it is used, and will stay'
		elif unsupported; then
			say 'this kernel or iproute2 can'\''t bind a FOU listener to one address: the listener is on all'
			bind_0_or_1_1_or_2_2
		else
			fail 53
		fi
	}
	# what leaves from alternate local addresses is rewritten
	pending undo_outward ||
		try undo_outward nft -f - <<EOF || fail 40
add chain ip ipipou0 post { type filter hook postrouting priority srcnat; policy accept; }
add rule ip ipipou0 post ip saddr set ip saddr . udp sport map @alt_out
EOF
	# ipipou0: the tunnel to the peer, from the alternate local address
	try undo_bind_0_or_1_1_4 ip link add name ipipou0 type ipip remote "${PEER_IP}" local 172.29.0.0 encap fou encap-sport 10000 encap-dport "${PEER_PORT}" mode ipip dev s0 || fail 52
	# inner addresses of both ends
	try '' ip address add 172.28.0.0 peer 172.28.0.1 dev ipipou0 || fail 51
	# open the gate to the peer, and rewrite its packets to the alternate address
	try "passing_undo_bind_0_or_1_1_6 ${FOU_IP} ${PEER_IP} ${PEER_PORT}" nft -f - <<EOF || fail 40
add element ip ipipou0 bare { ${PEER_IP} . 172.29.0.0 }
add element ip ipipou0 alt_in { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : 172.29.0.0 }
add element ip ipipou0 peers { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : goto alternate }
EOF
	try '' ip link set dev ipipou0 up || fail 52
	return 0
}

bind_0_or_1_1_or_2_2() {
	# FOU listener in the form that older kernels and iproute2 know
	pending undo_plain_alternate_listener_0 ||
		try undo_plain_alternate_listener_0 ip fou add port 10000 ipproto 4 || {
		if exists && prints "port 10000 ipproto 4|port 10000 ipproto 4 local ${FOU_IP}|port 10000 ipproto 4 local ${FOU_IP} dev *" ip fou show; then
			say 'a FOU listener on port 10000 exists already: it is used, and will stay'
		else
			fail 53
		fi
	}
	return 0
}

rebind_0() {
	# ipipou0: the tunnel to the peer's new address
	try "passing_undo_rebind_0_1 ${OLD_IP} ${OLD_LOCAL} ${OLD_PORT}" ip link set dev ipipou0 type ipip remote "${PEER_IP}" local "${FOU_IP}" encap fou encap-sport 10000 encap-dport "${PEER_PORT}" dev s0 || {
		if exists; then
			say 'another tunnel has these two outer addresses already: using the alternate local address 172.29.0.0'
			rebind_0_or_1_1
			return
		else
			fail 52
		fi
	}
	# shut the gate to the old address and open it to the new one
	try '' nft -f - <<EOF || {
delete element ip ipipou0 peers { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
delete element ip ipipou0 bare { ${OLD_IP} . ${OLD_LOCAL} }
add element ip ipipou0 alt_in { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} : 172.29.0.0 }
delete element ip ipipou0 alt_in { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
add element ip ipipou0 bare { ${PEER_IP} . ${FOU_IP} }
add element ip ipipou0 peers { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : goto pass }
EOF
		if gone; then
			say 'ipipou0: the gate did not have the peer'\''s old address any more'
			rebind_0_or_2_1
		else
			fail 40
		fi
	}
	# the alternate address, if it was in use, is not needed any more
	take_back undo_alternate_listener_0 || :
	take_back undo_alternate_address_0 || :
	return 0
}

rebind_0_or_1_1() {
	# alternate local address; nft rewrites it, it is never seen outside
	pending undo_alternate_address_0 ||
		taken '*' ip -4 -o address show to 172.29.0.0/32
	pending undo_alternate_address_0 ||
		try undo_alternate_address_0 ip address add 172.29.0.0/32 scope global dev s0 || {
		if exists; then
			say 'the alternate local address 172.29.0.0 exists already: it is used, and will stay'
		else
			fail 51
		fi
	}
	# what comes to the FOU port is taken out of its UDP
	pending undo_alternate_listener_0 ||
		taken 'port 10000 ipproto 4|port 10000 ipproto 4 local 172.29.0.0|port 10000 ipproto 4 local 172.29.0.0 *' ip fou show
	pending undo_alternate_listener_0 ||
		try undo_alternate_listener_0 ip fou add port 10000 ipproto 4 local 172.29.0.0 dev s0 || {
		if exists && prints 'port 10000 ipproto 4|port 10000 ipproto 4 local 172.29.0.0|port 10000 ipproto 4 local 172.29.0.0 dev *' ip fou show; then
			say 'a FOU listener on port 10000 exists already: it is used, and will stay'
		elif unsupported; then
			say 'this kernel or iproute2 can'\''t bind a FOU listener to one address: the listener is on all'
			rebind_0_or_1_1_or_2_2
		else
			fail 53
		fi
	}
	# what leaves from alternate local addresses is rewritten
	pending undo_outward ||
		try undo_outward nft -f - <<EOF || fail 40
add chain ip ipipou0 post { type filter hook postrouting priority srcnat; policy accept; }
add rule ip ipipou0 post ip saddr set ip saddr . udp sport map @alt_out
EOF
	# ipipou0: the tunnel to the peer's new address
	try "passing_undo_rebind_0_or_1_1_4 ${OLD_IP} ${OLD_LOCAL} ${OLD_PORT}" ip link set dev ipipou0 type ipip remote "${PEER_IP}" local 172.29.0.0 encap fou encap-sport 10000 encap-dport "${PEER_PORT}" dev s0 || fail 52
	# shut the gate to the old address and open it to the new one
	try '' nft -f - <<EOF || {
delete element ip ipipou0 peers { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
delete element ip ipipou0 bare { ${OLD_IP} . ${OLD_LOCAL} }
add element ip ipipou0 alt_in { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} : 172.29.0.0 }
delete element ip ipipou0 alt_in { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
add element ip ipipou0 bare { ${PEER_IP} . 172.29.0.0 }
add element ip ipipou0 alt_in { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : 172.29.0.0 }
add element ip ipipou0 peers { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : goto alternate }
EOF
		if gone; then
			say 'ipipou0: the gate did not have the peer'\''s old address any more'
			rebind_0_or_1_1_or_5_1
		else
			fail 40
		fi
	}
	return 0
}

rebind_0_or_1_1_or_2_2() {
	# FOU listener in the form that older kernels and iproute2 know
	pending undo_plain_alternate_listener_0 ||
		try undo_plain_alternate_listener_0 ip fou add port 10000 ipproto 4 || {
		if exists && prints "port 10000 ipproto 4|port 10000 ipproto 4 local ${FOU_IP}|port 10000 ipproto 4 local ${FOU_IP} dev *" ip fou show; then
			say 'a FOU listener on port 10000 exists already: it is used, and will stay'
		else
			fail 53
		fi
	}
	return 0
}

rebind_0_or_1_1_or_5_1() {
	try '' nft -f - <<EOF || :
delete element ip ipipou0 peers { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
EOF
	try '' nft -f - <<EOF || :
delete element ip ipipou0 bare { ${OLD_IP} . ${OLD_LOCAL} }
EOF
	try '' nft -f - <<EOF || fail 40
add element ip ipipou0 alt_in { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} : 172.29.0.0 }
delete element ip ipipou0 alt_in { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
add element ip ipipou0 bare { ${PEER_IP} . 172.29.0.0 }
add element ip ipipou0 alt_in { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : 172.29.0.0 }
add element ip ipipou0 peers { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : goto alternate }
EOF
	return 0
}

rebind_0_or_2_1() {
	try '' nft -f - <<EOF || :
delete element ip ipipou0 peers { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
EOF
	try '' nft -f - <<EOF || :
delete element ip ipipou0 bare { ${OLD_IP} . ${OLD_LOCAL} }
EOF
	try '' nft -f - <<EOF || fail 40
add element ip ipipou0 alt_in { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} : 172.29.0.0 }
delete element ip ipipou0 alt_in { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
add element ip ipipou0 bare { ${PEER_IP} . ${FOU_IP} }
add element ip ipipou0 peers { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : goto pass }
EOF
	return 0
}

# Undos, run in reverse order of their steps.
passing_undo_bind_0_3() {
	run nft -f - <<EOF
delete element ip ipipou0 peers { ${1} . 10000 . ${2} . ${3} }
delete element ip ipipou0 bare { ${2} . ${1} }
add element ip ipipou0 alt_in { ${1} . 10000 . ${2} . ${3} : 172.29.0.0 }
delete element ip ipipou0 alt_in { ${1} . 10000 . ${2} . ${3} }
EOF
}
passing_undo_bind_0_or_1_1_6() {
	run nft -f - <<EOF
delete element ip ipipou0 peers { ${1} . 10000 . ${2} . ${3} }
delete element ip ipipou0 bare { ${2} . 172.29.0.0 }
add element ip ipipou0 alt_in { ${1} . 10000 . ${2} . ${3} : 172.29.0.0 }
delete element ip ipipou0 alt_in { ${1} . 10000 . ${2} . ${3} }
EOF
}
passing_undo_rebind_0_1() {
	run ip link set dev ipipou0 type ipip remote "${1}" local "${2}" encap fou encap-sport 10000 encap-dport "${3}" dev s0
}
passing_undo_rebind_0_or_1_1_4() {
	run ip link set dev ipipou0 type ipip remote "${1}" local "${2}" encap fou encap-sport 10000 encap-dport "${3}" dev s0
}
undo_alternate_address_0() {
	run ip address del 172.29.0.0/32 dev s0
}
undo_alternate_listener_0() {
	run ip fou del port 10000 local 172.29.0.0 dev s0
}
undo_bind_0_1() {
	run ip link del dev ipipou0
}
undo_bind_0_or_1_1_4() {
	run ip link del dev ipipou0
}
undo_gate() {
	run nft delete table ip ipipou0
}
undo_listener_0() {
	run ip fou del port 10000 local "${1}" dev s0
}
undo_outward() {
	run nft -f - <<EOF
flush chain ip ipipou0 post
delete chain ip ipipou0 post
EOF
}
undo_plain_alternate_listener_0() {
	run ip fou del port 10000
}
undo_plain_listener_0() {
	run ip fou del port 10000
}

status() {
	show ip -d -s link show dev ipipou0
	show ip address show dev ipipou0
	show ip fou show
	show nft list table ip ipipou0
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
	unbound ipipou0
	begin
	bind_0
	done_with
}
op_move_0() {
	peer "${1-}" "${2-}"
	facts
	ends ipipou0
	begin
	rebind_0
	done_with
}

usage() { die 2 "usage: $0 up | down | bind IP PORT [DEV] | rebind IP PORT [DEV] | status"; }

find_ip
load
case ${1-} in
up|down)
	[ $# -eq 1 ] || usage
	locked "op_$1"
	;;
bind|rebind)
	[ $# -le 4 ] || usage
	[ -s "$JOURNAL" ] || die 1 "$NAME is not up: run $0 up"
	case ${4-ipipou0} in
	ipipou0)
		case $1 in
		bind) locked op_bind_0 "${2-}" "${3-}" ;;
		*) locked op_move_0 "${2-}" "${3-}" ;;
		esac
		;;
	*) die 2 "no tunnel ${4-}" ;;
	esac
	;;
status) status ;;
*) usage ;;
esac
