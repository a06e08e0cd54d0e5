#!/bin/sh
# [[tunnel]]
# client = true
# number = 0
# mode = "ipip"
# encap = "fou"
# tunl-dev = "ipipou0"
# tunl-ip = ["172.28.0.1"]
# tunl-peer-ip = ["172.28.0.0"]
# fou-dev = "c0"
# fou-local-port = 10000
# fou-remote-ip = "server.example"
# fou-remote-port = 10000
# reply-on-auth-ok = false
# # auth-token is set; --with-secrets shows it
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

# The client's own authentication. Tokens, keys and secrets stay in variables, in
# hex, which can hold every byte, and in files that only root reads. They are
# never words of another program, which `ps` would show. A function that fails
# says why in ERR.
PAYLOAD='' SENDER='' LOCKED=''

wrong() {
	ERR=$1
	return 1
}
installed() { quiet command -v "$1" || wrong "$1 is not installed, or not in PATH"; }

can_hex() { quiet command -v od || installed hexdump; }
# hex: standard input in hex. No file here is as long as the limit.
# shellcheck disable=SC2046 # the words are wanted
hex() {
	if quiet command -v od; then
		printf %s $(od -An -v -tx1 -N 65536)
	else
		printf %s $(hexdump -v -n 65536 -e '1/1 "%02x "')
	fi
}
# unhex HEX: its bytes. Cut in pieces, as long words are slow to take apart.
unhex() {
	left=$1 bytes=
	while [ -n "$left" ]; do
		piece=$(printf %.64s "$left")
		left=${left#"$piece"}
		while [ -n "$piece" ]; do
			byte=$((0x${piece%"${piece#??}"})) piece=${piece#??}
			bytes=$bytes\\0$((byte >> 6))$((byte >> 3 & 7))$((byte & 7))
		done
	done
	printf %b "$bytes"
}

readable() {
	if [ ! -r "$1" ] || [ -d "$1" ]; then wrong "can't read $1, which must hold $2"; fi
}
# content FILE WHAT: BYTES is the file in hex, without one newline or CRLF at its
# end.
content() {
	readable "$1" "$2" || return
	can_hex || return
	BYTES=$(hex <"$1")
	BYTES=${BYTES%0a}
	BYTES=${BYTES%0d}
	[ -n "$BYTES" ] || wrong "$1 is empty, it must hold $2"
}
# lines FILE: TEXT is all lines in one, less the white space around each.
lines() {
	TEXT='' cr=$(printf '\r')
	while read -r line || [ -n "$line" ]; do
		TEXT=$TEXT${line%"$cr"}
	done <"$1"
}
# unbase64 TEXT: BYTES is what it says, in hex. `base64 -d` and `openssl base64`
# are not on every host, and the latter passes over what is not base64.
unbase64() {
	left=$1 piece='' BYTES='' bits=0 value=0
	digits=ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/
	set --
	while [ -n "$left" ]; do
		piece=$(printf %.64s "$left")
		left=${left#"$piece"}
		while [ -n "$piece" ]; do
			lower=${digits%%"${piece%"${piece#?}"}"*}
			[ "$lower" != "$digits" ] || break 2
			piece=${piece#?} value=$(((value << 6 | ${#lower}) & 4095)) bits=$((bits + 6))
			[ $bits -lt 8 ] || {
				bits=$((bits - 8))
				set -- "$@" $((value >> bits & 255))
			}
		done
	done
	case $bits$piece$left in 0 | 4== | 2=) ;; *) return 1 ;; esac
	[ $# -eq 0 ] || BYTES=$(printf %02x "$@")
}

# payload HEX WHAT: that of the next datagram, which must fit an Ethernet frame.
payload() {
	[ ${#1} -le 2944 ] || wrong "$2 is longer than 1472 bytes" || return
	PAYLOAD=$1
}
payload_empty() { PAYLOAD=; }
payload_token() { content "$1" 'the token' && payload "$BYTES" "the token in $1"; }
payload_token_b64() {
	readable "$1" 'the token in base64' || return
	lines "$1"
	if [ -z "$TEXT" ] || ! unbase64 "$TEXT"; then wrong "$1 must hold the token in base64" || return; fi
	payload "$BYTES" "the token in $1"
}

# seed KEYFILE: BYTES is the seed of an ed25519 key.
seed() {
	want='an ed25519 private key: 32 bytes in base64, or as OpenSSH writes it, without a passphrase'
	readable "$1" "$want" || return
	lines "$1"
	text=${TEXT#-----BEGIN OPENSSH PRIVATE KEY-----}
	if [ "$text" != "$TEXT" ]; then
		# OpenSSH's PROTOCOL.key: magic, cipher and KDF "none", no KDF options,
		# one key; public key; length, two check numbers; public key, seed,
		# public key, comment.
		none=000000046e6f6e65 ed25519=0000000b7373682d6564323535313900000020
		unbase64 "${text%-----END OPENSSH PRIVATE KEY-----*}" || BYTES=
		rest=${BYTES#"6f70656e7373682d6b65792d763100$none${none}000000000000000100000033$ed25519"}
		public=$(printf %.64s "$rest")
		BYTES=${rest#"$public"????????????????????????"$ed25519${public}00000040"}
		[ "$BYTES" != "$rest" ] || BYTES=
		BYTES=$(printf %.64s "$BYTES")
	else
		unbase64 "$TEXT" || BYTES=
	fi
	[ ${#BYTES} -eq 64 ] || wrong "$1 must hold $want"
}

# payload_ed25519 KEYFILE SECRETFILE: a signature.
payload_ed25519() {
	can_hex || return
	BYTES=6e6574707269636b6c652e636f6d # netprickle.com
	[ -z "$2" ] || content "$2" 'the secret' || return
	secret=$BYTES
	seed "$1" || return
	sign "$BYTES" "$secret" "$1"
}
# sign SEED SECRET KEY: signature, time and salt; signed are time, salt and secret.
# They are a file because OpenSSL 3.0 maps it into memory.
sign() {
	installed openssl || return
	can_hex || return
	now=$(date +%s) && salt=$(openssl rand -hex 4 2>/dev/null) || salt=
	[ ${#salt} -eq 8 ] || wrong "date or openssl rand doesn't work" || return
	stamp=$(printf %010x "$now")$salt
	# A signal waits until the files are gone.
	signature=$(
		trap '' INT TERM HUP
		trap 'rm -rf "$JOURNAL.private.$$"' EXIT
		# Before the seed: what PKCS #8 has there.
		private_dir && unhex "302e020100300506032b657004220420$1" >"$PRIVATE/key" &&
			unhex "$stamp$2" >"$PRIVATE/message" &&
			quiet openssl pkeyutl -sign -rawin -keyform DER -inkey "$PRIVATE/key" -in "$PRIVATE/message" -out "$PRIVATE/signature" &&
			hex <"$PRIVATE/signature"
	)
	[ ${#signature} -eq 128 ] ||
		wrong "openssl can't sign with $3: want 3.0 or later, have $(openssl version 2>&1)" || return
	payload "$signature$stamp"
}

# private_dir: PRIVATE is a new directory, of this process's own.
private_dir() {
	PRIVATE=$JOURNAL.private.$$
	rm -rf "$PRIVATE"
	mkdir -p "${JOURNAL%/*}" && mkdir -m 700 "$PRIVATE"
}

# have_sender: SENDER is what can send a datagram here.
have_sender() {
	STEP=authentication
	installed nft || return
	if quiet command -v socat; then
		SENDER=socat
		return
	fi
	if quiet command -v bash && quiet command -v cat; then
		# Some are built without network.
		case $(bash -c ': >/dev/udp/127.0.0.1/9' 2>&1) in *'No such file'*) ;; *)
			SENDER=bash
			return
			;;
		esac
	fi
	for SENDER in nc ncat 'busybox nc'; do
		case $($SENDER -h 2>&1) in
		*--send-only*)
			SENDER="$SENDER -n --send-only"
			return
			;;
		*[[:space:]]-u[[:space:],]*)
			SENDER="$SENDER -n -w 1"
			return
			;;
		esac
	done
	SENDER=ping
	quiet command -v ping || {
		SENDER=
		wrong 'nothing here can send a UDP datagram: install socat, bash, nc (one that knows -u) or ping'
	}
}

# send_payload LOCAL_IP LOCAL_PORT PEER_IP PEER_PORT: nobody else can bind the FOU
# listener's port, so what a sender sends gets it from a rule of nft's, which is
# there for just that long. It comes before connection tracking, so that the
# datagram is of the tunnel's own flow. A signal waits until the rule is gone.
send_payload() {
	[ -n "$SENDER" ] || have_sender || return
	trap 'INTERRUPTED=1' INT TERM HUP
	STEP="authentication to $3:$4" sent=1
	ERR=$(
		trap '' INT TERM HUP
		send "$@" || {
			printf %s "$ERR"
			exit 1
		}
	) || sent=
	[ -z "$INTERRUPTED" ] || wrong interrupted || return
	[ -n "$sent" ]
}
send() {
	# Left by one that was killed.
	while pending undo_sender; do take_back undo_sender || :; done
	table=ipipou-auth-$2-$$ sent=1
	if [ "$SENDER" = ping ]; then
		rules=$(icmp_to_udp "$@")
	else
		rules="ip daddr $3 udp dport $4 udp sport != $2 counter ip saddr set $1 udp sport set $2"
	fi
	note "undo_sender $table"
	if run nft -f - <<EOF; then
table ip $table {
	chain out {
		type filter hook output priority -300
		$rules
	}
}
EOF
		deliver "$@" || sent=
		# What the rule has not seen was not sent, whatever the sender says.
		case $(nft list table ip "$table" 2>/dev/null) in *'counter packets 0 '*)
			sent='' ERR=${ERR:-"$SENDER has sent nothing"}
			;;
		esac
		set -- "$ERR"
		if undo_sender "$table"; then
			ERR=$1
			drop undo_sender
		else
			sent= # and `down` tries again
		fi
	else
		sent=
		drop undo_sender
	fi
	[ -s "$JOURNAL" ] || rm -f "$JOURNAL"
	# Of an error of nft's no more than a line: the next one shows the rule.
	ERR=${ERR%%"
"*}
	[ -n "$sent" ]
}
undo_sender() {
	! quiet nft list table ip "$1" || run nft delete table ip "$1"
}

# icmp_to_udp LOCAL_IP LOCAL_PORT PEER_IP PEER_PORT: rules that make an echo
# request of the payload's length the datagram. A rule can set 16 bytes at once;
# the last one changes what all look for.
icmp_to_udp() {
	left=$PAYLOAD at=64 length=$((${#PAYLOAD} / 2))
	match="ip daddr $3 icmp type echo-request ip length $((length + 28))"
	while [ -n "$left" ]; do
		chunk=$(printf %.32s "$left")
		left=${left#"$chunk"}
		printf '%s @th,%d,%d set 0x%s\n' "$match" $at $((${#chunk} * 4)) "$chunk"
		at=$((at + 128))
	done
	# UDP may go without a checksum, and nft can't compute one here.
	printf '%s counter ip protocol set 17 @th,0,16 set %d @th,16,16 set %d @th,32,16 set %d @th,48,16 set 0\n' \
		"$match" "$2" "$4" $((length + 8))
}

# deliver LOCAL_IP LOCAL_PORT PEER_IP PEER_PORT: by SENDER. From a file, because
# what comes through a pipe in parts might be sent in parts.
deliver() {
	if [ "$SENDER" = ping ]; then
		# It gets no answer, so it always fails.
		run ping -c 1 -W 1 -s $((${#PAYLOAD} / 2)) -I "$1" "$3" || :
		return 0
	fi
	bytes=$PAYLOAD
	# An empty file is no datagram. Where the server wants nothing, anything will do.
	if [ "$SENDER" = socat ]; then
		to=UDP4-DATAGRAM:$3:$4,bind=$1
		[ -n "$bytes" ] || to=$to,shut-null
	else
		bytes=${bytes:-00}
	fi
	delivered=
	# shellcheck disable=SC2016,SC2086 # bash expands it; the words are wanted
	if private_dir && unhex "$bytes" >"$PRIVATE/payload"; then
		case $SENDER in
		socat) run socat -u STDIN "$to" <"$PRIVATE/payload" ;;
		bash) run bash -c 'cat >"/dev/udp/$0/$1"' "$3" "$4" <"$PRIVATE/payload" ;;
		*) run $SENDER -u -s "$1" "$3" "$4" <"$PRIVATE/payload" ;;
		esac && delivered=1
	else
		ERR="can't write $PRIVATE"
	fi
	rm -rf "$PRIVATE"
	[ -n "$delivered" ]
}

# locked COMMAND...: nobody else changes the journal meanwhile. The holder's pid is
# the name of a file, because of all that find it dead only one can remove that.
# The command may exit; a signal waits until it is done.
locked() {
	[ -z "$LOCKED" ] || {
		"$@"
		return
	}
	trap 'INTERRUPTED=1' INT TERM HUP
	trap unlock EXIT
	[ -d "${JOURNAL%/*}" ] || mkdir -p "${JOURNAL%/*}" || exit 1
	waited=0
	# Ctrl-C must not meet a mkdir that is half done.
	until holder=$(trap '' INT TERM HUP && take_lock); do
		[ -z "$INTERRUPTED" ] || die 1 interrupted
		[ $waited -lt 10 ] || die 1 "process ${holder:-?} is at work on it; if that is not so, remove $JOURNAL.lock"
		sleep 1
		waited=$((waited + 1))
	done
	LOCKED=1
	# Left by one that was killed.
	(
		set +f
		for dir in "$JOURNAL".private.*; do
			quiet kill -0 "${dir##*.}" || rm -rf "$dir"
		done
	)
	"$@"
	set -- $?
	unlock
	trap - EXIT
	[ -z "$INTERRUPTED" ] || die 1 interrupted
	return "$1"
}
# take_lock: print who holds it, if it is not us then.
take_lock() {
	quiet mkdir "$JOURNAL.lock" || {
		holder=$(set +f && cd "$JOURNAL.lock" && printf %s ./*) 2>/dev/null
		holder=${holder#./}
		# There is none while somebody takes or leaves it.
		case $holder in '' | *[!0-9]*) return 1 ;; esac
		printf %s "$holder"
		[ "$holder" = $$ ] || ! quiet kill -0 "$holder" || return
		quiet rm "$JOURNAL.lock/$holder" || return
	}
	: >"$JOURNAL.lock/$$"
}
unlock() {
	[ -z "$LOCKED" ] || (trap '' INT TERM HUP && rm -rf "$JOURNAL.lock")
	LOCKED=
}

# keepalive_loop SEC COMMAND...: until somebody takes the instance down, or a
# signal comes. The loop itself has nothing to undo, so it may end anywhere.
keepalive_loop() {
	case $1 in *[!0-9]* | '' | 0) die 2 "'$1' is not a number of seconds" ;; esac
	every=$1 nap=
	shift
	trap 'quiet kill "$nap"; exit 0' INT TERM HUP
	while :; do
		(locked if_up "$@")
		[ -s "$JOURNAL" ] || {
			say 'is down, so there is nothing to keep alive'
			exit 0
		}
		sleep "$every" &
		nap=$!
		wait "$nap"
		nap=
	done
}
if_up() {
	[ ! -s "$JOURNAL" ] || "$@" || say "${STEP-}: $ERR"
}

# What the host has to tell. A value in the environment goes before.
facts() {
	# first IPv4 address of c0
	: "${FOU_IP:=$(word 4 ip -4 -o address show dev c0)}"
	[ -n "$FOU_IP" ] || die 2 'c0 does not exist or has no IPv4 address: give --fou-local-ip, or another --fou-dev'
	# outer address of ipipou0's server, server.example
	: "${PEER_IP:=$(word 1 getent ahostsv4 server.example)}"
	[ -n "$PEER_IP" ] || die 2 'server.example has no IPv4 address, or there is no getent to ask: set PEER_IP'
	# UDP port of ipipou0's server
	: "${PEER_PORT:=10000}"
	return 0
}

# What a later call must know of this one.
remember() {
	set_var FOU_IP "$FOU_IP"
	set_var PEER_IP "$PEER_IP"
	set_var PEER_PORT "$PEER_PORT"
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
	# ipipou0: the tunnel to the server
	try undo_up_4 ip link add name ipipou0 type ipip remote "${PEER_IP}" local "${FOU_IP}" encap fou encap-sport 10000 encap-dport "${PEER_PORT}" mode ipip dev c0 || fail 52
	# what the server sends to the FOU port is taken out of its UDP; the kernel refuses other senders
	pending undo_listener_0 ||
		taken "port 10000 ipproto 4|port 10000 ipproto 4 local ${FOU_IP}|port 10000 ipproto 4 local ${FOU_IP} *" ip fou show
	pending undo_listener_0 ||
		try "undo_listener_0 ${FOU_IP} ${PEER_IP} ${PEER_PORT}" ip fou add port 10000 ipproto 4 local "${FOU_IP}" peer "${PEER_IP}" peer_port "${PEER_PORT}" dev c0 || {
		if exists && prints "port 10000 ipproto 4|port 10000 ipproto 4 local ${FOU_IP}|port 10000 ipproto 4 local ${FOU_IP} dev *|port 10000 ipproto 4 local ${FOU_IP} peer ${PEER_IP} peer_port ${PEER_PORT}|port 10000 ipproto 4 local ${FOU_IP} peer ${PEER_IP} peer_port ${PEER_PORT} *" ip fou show; then
			say 'a FOU listener on port 10000 exists already: it is used, and will stay'
		elif unsupported; then
			say 'this kernel or iproute2 can'\''t bind a FOU listener to one peer: the listener is open to all senders'
			up_or_5_2
		else
			fail 53
		fi
	}
	# inner addresses of both ends
	try '' ip address add 172.28.0.1 peer 172.28.0.0 dev ipipou0 || fail 51
	try '' ip link set dev ipipou0 up || fail 52
	return 0
}

up_or_5_2() {
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

rebind_0() {
	# the listener on the old address
	take_back undo_listener_0 || :
	take_back undo_plain_listener_0 || :
	# ipipou0: the tunnel from the new address
	try '' ip link set dev ipipou0 type ipip remote "${PEER_IP}" local "${FOU_IP}" encap fou encap-sport 10000 encap-dport "${PEER_PORT}" dev c0 || fail 52
	# what the server sends to the FOU port is taken out of its UDP; the kernel refuses other senders
	pending undo_listener_0 ||
		taken "port 10000 ipproto 4|port 10000 ipproto 4 local ${FOU_IP}|port 10000 ipproto 4 local ${FOU_IP} *" ip fou show
	pending undo_listener_0 ||
		try "undo_listener_0 ${FOU_IP} ${PEER_IP} ${PEER_PORT}" ip fou add port 10000 ipproto 4 local "${FOU_IP}" peer "${PEER_IP}" peer_port "${PEER_PORT}" dev c0 || {
		if exists && prints "port 10000 ipproto 4|port 10000 ipproto 4 local ${FOU_IP}|port 10000 ipproto 4 local ${FOU_IP} dev *|port 10000 ipproto 4 local ${FOU_IP} peer ${PEER_IP} peer_port ${PEER_PORT}|port 10000 ipproto 4 local ${FOU_IP} peer ${PEER_IP} peer_port ${PEER_PORT} *" ip fou show; then
			say 'a FOU listener on port 10000 exists already: it is used, and will stay'
		elif unsupported; then
			say 'this kernel or iproute2 can'\''t bind a FOU listener to one peer: the listener is open to all senders'
			rebind_0_or_4_2
		else
			fail 53
		fi
	}
	return 0
}

rebind_0_or_4_2() {
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

# Undos, run in reverse order of their steps.
undo_listener_0() {
	run ip fou del port 10000 local "${1}" peer "${2}" peer_port "${3}" dev c0
}
undo_plain_listener_0() {
	run ip fou del port 10000
}
undo_up_4() {
	run ip link del dev ipipou0
}

payload_0() {
	# /etc/ipipou/ipipou0.token must hold the token; AUTH_TOKEN_FILE in the environment names another file
	payload_token "${AUTH_TOKEN_FILE:-/etc/ipipou/ipipou0.token}"
}

# Each client's authentication; `payloads` only makes them, before anything is done.
payloads() {
	payload_0 || return
}
authenticate() {
	payload_0 && send_payload "${FOU_IP}" 10000 "${PEER_IP}" "${PEER_PORT}" || return
	say 'ipipou0: authentication sent'
}

status() {
	show ip -d -s link show dev ipipou0
	show ip address show dev ipipou0
	show ip fou show
}

op_up() {
	[ ! -s "$JOURNAL" ] || die 1 "$NAME is up already, says $JOURNAL: run $0 down"
	payloads || die 2 "authentication: $ERR"
	have_sender || die 120 "authentication: $ERR"
	facts
	begin
	up
	remember
	done_with
	authenticate || {
		say "${STEP-}: $ERR"
		undo_all
		[ -z "$INTERRUPTED" ] || exit 1
		exit 120
	}
}
op_down() { undo_all || exit 200; }

op_move_0() {
	unset FOU_IP
	if [ -n "${1-}" ]; then
		ipv4 "$1"
		PEER_IP=$1
	else
		unset PEER_IP
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

op_auth() {
	authenticate || die 120 "${STEP-}: $ERR"
}

# One beat of `keepalive`: another call, or the host's network, may have changed
# where the tunnel's ends are.
beat() {
	unset FOU_IP
	unset PEER_IP
	unset PEER_PORT
	load
	facts
	now=$(word 4 ip -4 -o address show dev c0)
	[ -z "$now" ] || [ "$now" = "$FOU_IP" ] || op_move_0 '' ''
	authenticate
}
op_keepalive() {
	[ -s "$JOURNAL" ] || die 1 "$NAME is not up: run $0 up"
	keepalive_loop "$1" beat
}

usage() { die 2 "usage: $0 up | down | rebind [IP [PORT [DEV]]] | auth | keepalive SEC | status"; }

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
		locked op_auth
		;;
	*) die 2 "no tunnel ${4-}" ;;
	esac
	;;
auth)
	[ $# -eq 1 ] || usage
	[ -s "$JOURNAL" ] || die 1 "$NAME is not up: run $0 up"
	facts
	locked op_auth
	;;
keepalive)
	[ $# -eq 2 ] || usage
	op_keepalive "$2"
	;;
status) status ;;
*) usage ;;
esac
