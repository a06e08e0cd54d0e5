#!/bin/sh
# [[tunnel]]
# static = true
# number = 0
# mode = "ipip"
# encap = "gue"
# tunl-dev = "ipipou0"
# tunl-ip = ["10.9.0.1/30"]
# routes = ["0.0.0.0/0"]
# bridge = "br0 10.42.1.1/24"
# forward = true
# forward-to = ["br0"]
# masquerade = false
# post-up = [["status", "up"]]
# post-down = [["logger", "gone"]]
# fou-dev = "eth0"
# fou-local-ip = "192.0.2.1"
# fou-local-port = 10000
# fou-remote-ip = "192.0.2.2"
# fou-remote-port = 10000
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
	# the outer interface eth0
	[ -n "$(word 2 ip -o link show dev eth0)" ] || die 2 'eth0 does not exist: give another --fou-dev'
	# outer address of ipipou0's other end
	: "${PEER_IP:=192.0.2.2}"
	# UDP port of ipipou0's other end
	: "${PEER_PORT:=10000}"
	# a tunnel in group 1730, which this host forwards for though it is no router
	: "${FORWARDS46_FOR:=$(word 2 ip -o link show group 1730)}"
	: "${FORWARDS46_FOR:=nobody}"
	# a tunnel in group 1728, which this host forwards for though it is no router
	: "${FORWARDS_FOR:=$(word 2 ip -o link show group 1728)}"
	: "${FORWARDS_FOR:=nobody}"
	# whether this host forwards ipv4
	: "${IP_FORWARD:=$(word 1 cat /proc/sys/net/ipv4/ip_forward)}"
	: "${IP_FORWARD:=0}"
	# whether ICMP redirects are accepted, which turning forwarding on and off changes
	: "${ACCEPT_REDIRECTS:=$(word 1 cat /proc/sys/net/ipv4/conf/all/accept_redirects)}"
	: "${ACCEPT_REDIRECTS:=0}"
	# whether eth0 forwards by itself, which turning forwarding on and off changes
	: "${FORWARDING_2:=$(word 1 cat /proc/sys/net/ipv4/conf/eth0/forwarding)}"
	: "${FORWARDING_2:=0}"
	return 0
}

# What a later call must know of this one.
remember() {
	set_var PEER_IP "$PEER_IP"
	set_var PEER_PORT "$PEER_PORT"
	set_var FORWARDS46_FOR "$FORWARDS46_FOR"
	set_var FORWARDS_FOR "$FORWARDS_FOR"
	set_var IP_FORWARD "$IP_FORWARD"
	set_var ACCEPT_REDIRECTS "$ACCEPT_REDIRECTS"
	set_var FORWARDING_2 "$FORWARDING_2"
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
	# what is forwarded passes between the tunnel and what it is for, in both directions, and nothing else comes in or out of it
	pending undo_forwarding ||
		taken 'table inet ipipou0' nft list tables
	pending undo_forwarding ||
		try undo_forwarding nft -f - <<EOF || fail 40
create table inet ipipou0
table inet ipipou0 {
	chain from_0 {
		ct state established,related return
		oifname { "br0" } return
		counter drop
	}
	chain to_0 {
		ct state established,related return
		iifname { "br0" } return
		counter drop
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname "ipipou0" jump from_0
		oifname "ipipou0" jump to_0
	}
}
EOF
	# turning forwarding off changes more than turning it on did; this puts back what was
	! quiet test "${IP_FORWARD} ${FORWARDS_FOR} ${FORWARDS46_FOR}" = '0 nobody nobody' ||
		note "undo_up_5 ${ACCEPT_REDIRECTS}"
	! quiet test "${IP_FORWARD} ${FORWARDS_FOR} ${FORWARDS46_FOR}" = '0 nobody nobody' ||
		note "undo_up_6 ${FORWARDING_2}"
	# a host that was no router becomes one for tunnels alone
	! quiet test "${IP_FORWARD} ${FORWARDS_FOR} ${FORWARDS46_FOR}" '!=' '1 nobody nobody' ||
		try '' nft -f - <<EOF || fail 40
add rule inet ipipou0 forward meta nfproto ipv4 iifgroup != { 1728, 1730 } oifgroup != { 1728, 1730 } drop
EOF
	! quiet test "${IP_FORWARD} ${FORWARDS_FOR} ${FORWARDS46_FOR}" '!=' '1 nobody nobody' ||
		try undo_up_8 sysctl -q -w net/ipv4/ip_forward=1 || fail 1
	# the operator's own, for the way down
	note undo_up_9
	# bridge for the network behind this end
	taken 'br0 *|br0@*' ip -br link show
	try undo_up_10 ip link add name br0 type bridge || {
		if exists; then
			say 'the bridge br0 exists already: it is used, and will stay'
			up_or_10_1
		else
			fail 52
		fi
	}
	taken '*' ip -o address show to 10.42.1.1/32
	try undo_up_11 ip address add 10.42.1.1/24 dev br0 || {
		if exists; then
			say 'br0 has the address 10.42.1.1/24 already: it is used, and will stay'
		else
			fail 51
		fi
	}
	try '' ip link set dev br0 up || fail 52
	# ipipou0: the tunnel to the other end
	try undo_up_13 ip link add name ipipou0 type ipip remote "${PEER_IP}" local 192.0.2.1 encap gue encap-sport 10000 encap-dport "${PEER_PORT}" mode ipip dev eth0 || fail 52
	# what the other end sends to the GUE port is taken out of its UDP; the kernel refuses other senders
	pending undo_listener_0 ||
		taken 'port 10000 gue|port 10000 gue local 192.0.2.1|port 10000 gue local 192.0.2.1 *' ip fou show
	pending undo_listener_0 ||
		try "undo_listener_0 ${PEER_IP} ${PEER_PORT}" ip fou add port 10000 gue local 192.0.2.1 peer "${PEER_IP}" peer_port "${PEER_PORT}" dev eth0 || {
		if exists && prints "port 10000 gue|port 10000 gue local 192.0.2.1|port 10000 gue local 192.0.2.1 dev *|port 10000 gue local 192.0.2.1 peer ${PEER_IP} peer_port ${PEER_PORT}|port 10000 gue local 192.0.2.1 peer ${PEER_IP} peer_port ${PEER_PORT} *" ip fou show; then
			say 'a FOU listener on port 10000 exists already: it is used, and will stay'
		elif unsupported; then
			say 'this kernel or iproute2 can'\''t bind a FOU listener to one peer: the listener is open to all senders'
			up_or_14_2
		else
			fail 53
		fi
	}
	# by their group instances know each other's tunnels, which they don't shut out
	! quiet test "${IP_FORWARD} ${FORWARDS_FOR} ${FORWARDS46_FOR}" '!=' '1 nobody nobody' ||
		try '' ip link set dev ipipou0 group 1728 || fail 52
	# inner addresses
	try '' ip address add 10.9.0.1/30 dev ipipou0 || fail 51
	try '' ip link set dev ipipou0 up || fail 52
	# what would carry the tunnel's own packets has a table of its own
	try '' ip route add default dev ipipou0 table 10000 || fail 1
	# the tunnel's own packets don't go through the tunnel
	pending undo_outer_rule_to_0 ||
		try "undo_outer_rule_to_0 ${PEER_IP}" ip -4 rule add to "${PEER_IP}" lookup main pref 29000 || fail 1
	# nor what is sent from the outer address
	pending undo_outer_rule_from_0 ||
		try undo_outer_rule_from_0 ip -4 rule add from 192.0.2.1 lookup main pref 29000 || fail 1
	# what has a route of its own, longer than the tunnel's, keeps it
	try undo_up_21 ip -4 rule add lookup main suppress_prefixlength 0 pref 29001 || fail 1
	# all the rest goes through the tunnel
	try undo_up_22 ip -4 rule add lookup 10000 pref 29002 || fail 1
	# the operator's own, the tunnel is up
	try '' command status up || fail 1
	return 0
}

up_or_10_1() {
	# it must be a bridge
	try '' test -d /sys/class/net/br0/bridge || fail 1
	# one that was down (its flags are even) is down again afterwards
	! quiet grep -q '[02468ace]$' /sys/class/net/br0/flags ||
		note undo_up_or_10_1_2
	return 0
}

up_or_14_2() {
	# FOU listener in the form that older kernels and iproute2 know
	pending undo_plain_listener_0 ||
		try undo_plain_listener_0 ip fou add port 10000 gue || {
		if exists && prints 'port 10000 gue|port 10000 gue local 192.0.2.1|port 10000 gue local 192.0.2.1 dev *' ip fou show; then
			say 'a FOU listener on port 10000 exists already: it is used, and will stay'
		else
			fail 53
		fi
	}
	return 0
}

rebind_0() {
	# the listener on the old address
	take_back undo_listener_0 || :
	take_back undo_plain_listener_0 || :
	# ipipou0: the tunnel from the new address
	try '' ip link set dev ipipou0 type ipip remote "${PEER_IP}" local 192.0.2.1 encap gue encap-sport 10000 encap-dport "${PEER_PORT}" dev eth0 || fail 52
	# what the other end sends to the GUE port is taken out of its UDP; the kernel refuses other senders
	pending undo_listener_0 ||
		taken 'port 10000 gue|port 10000 gue local 192.0.2.1|port 10000 gue local 192.0.2.1 *' ip fou show
	pending undo_listener_0 ||
		try "undo_listener_0 ${PEER_IP} ${PEER_PORT}" ip fou add port 10000 gue local 192.0.2.1 peer "${PEER_IP}" peer_port "${PEER_PORT}" dev eth0 || {
		if exists && prints "port 10000 gue|port 10000 gue local 192.0.2.1|port 10000 gue local 192.0.2.1 dev *|port 10000 gue local 192.0.2.1 peer ${PEER_IP} peer_port ${PEER_PORT}|port 10000 gue local 192.0.2.1 peer ${PEER_IP} peer_port ${PEER_PORT} *" ip fou show; then
			say 'a FOU listener on port 10000 exists already: it is used, and will stay'
		elif unsupported; then
			say 'this kernel or iproute2 can'\''t bind a FOU listener to one peer: the listener is open to all senders'
			rebind_0_or_4_2
		else
			fail 53
		fi
	}
	take_back undo_outer_rule_to_0 || :
	take_back undo_outer_rule_from_0 || :
	# the tunnel's own packets don't go through the tunnel
	pending undo_outer_rule_to_0 ||
		try "undo_outer_rule_to_0 ${PEER_IP}" ip -4 rule add to "${PEER_IP}" lookup main pref 29000 || fail 1
	# nor what is sent from the outer address
	pending undo_outer_rule_from_0 ||
		try undo_outer_rule_from_0 ip -4 rule add from 192.0.2.1 lookup main pref 29000 || fail 1
	return 0
}

rebind_0_or_4_2() {
	# FOU listener in the form that older kernels and iproute2 know
	pending undo_plain_listener_0 ||
		try undo_plain_listener_0 ip fou add port 10000 gue || {
		if exists && prints 'port 10000 gue|port 10000 gue local 192.0.2.1|port 10000 gue local 192.0.2.1 dev *' ip fou show; then
			say 'a FOU listener on port 10000 exists already: it is used, and will stay'
		else
			fail 53
		fi
	}
	return 0
}

# Undos, run in reverse order of their steps.
undo_forwarding() {
	run nft delete table inet ipipou0
}
undo_listener_0() {
	run ip fou del port 10000 local 192.0.2.1 peer "${1}" peer_port "${2}" dev eth0
}
undo_outer_rule_from_0() {
	run ip -4 rule del from 192.0.2.1 lookup main pref 29000
}
undo_outer_rule_to_0() {
	run ip -4 rule del to "${1}" lookup main pref 29000
}
undo_plain_listener_0() {
	run ip fou del port 10000
}
undo_up_10() {
	run ip link del dev br0
}
undo_up_11() {
	run ip address del 10.42.1.1/24 dev br0
}
undo_up_13() {
	run ip link del dev ipipou0
}
undo_up_21() {
	run ip -4 rule del lookup main suppress_prefixlength 0 pref 29001
}
undo_up_22() {
	run ip -4 rule del lookup 10000 pref 29002
}
undo_up_5() {
	needed ip -o link show group 1728 || needed ip -o link show group 1730 || run sysctl -e -q -w "net/ipv4/conf/all/accept_redirects=${1}"
}
undo_up_6() {
	needed ip -o link show group 1728 || needed ip -o link show group 1730 || run sysctl -e -q -w "net/ipv4/conf/eth0/forwarding=${1}"
}
undo_up_8() {
	needed ip -o link show group 1728 || needed ip -o link show group 1730 || run sysctl -q -w net/ipv4/ip_forward=0
}
undo_up_9() {
	run command logger gone
}
undo_up_or_10_1_2() {
	run ip link set dev br0 down
}

status() {
	show ip -d -s link show dev ipipou0
	show ip address show dev ipipou0
	show ip route show dev ipipou0 table all
	show ip fou show
	show nft list table inet ipipou0
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

op_move_0() {
	if [ -n "${1-}" ]; then
		ipv4 "$1"
		PEER_IP=$1
	fi
	if [ -n "${2-}" ]; then
		port "$2"
		PEER_PORT=$2
	fi
	facts
	begin
	rebind_0
	remember
	done_with
}

usage() { die 2 "usage: $0 up | down | rebind [IP [PORT [DEV]]] | status"; }

find_ip
load
case ${1-} in
up|down)
	[ $# -eq 1 ] || usage
	locked "op_$1"
	;;
rebind)
	[ $# -le 4 ] || usage
	[ -s "$JOURNAL" ] || die 1 "$NAME is not up: run $0 up"
	case ${4-ipipou0} in
	ipipou0)
		locked op_move_0 "${2-}" "${3-}"
		;;
	*) die 2 "no tunnel ${4-}" ;;
	esac
	;;
status) status ;;
*) usage ;;
esac
