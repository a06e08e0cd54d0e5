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
# auth-lifetime = 60
# reply-on-auth-ok = false
# auth-remote-pubkey-b64 = "eQYNhD/Xwl6Zaq+z3QXDzNI77x8CEKqY1n5kt9bKeEI="
# # auth-secret is set; --with-secrets shows it
# [[tunnel]]
# server = true
# number = 1
# mode = "ipip"
# encap = "fou"
# tunl-dev = "ipipou1"
# tunl-ip = ["172.28.0.2"]
# tunl-peer-ip = ["172.28.0.3"]
# fou-dev = "s0"
# fou-local-port = 10001
# fou-local-ip-alt = "172.29.0.1"
# force-fou-local-ip-alt = false
# nft-table = "ipipou0"
# no-nft-counter = false
# auth-by-remote-ip = false
# auth-by-remote-port = false
# reply-on-auth-ok = false
# # auth-token is set; --with-secrets shows it
# [[tunnel]]
# client = true
# number = 2
# mode = "ipip"
# encap = "fou"
# tunl-dev = "ipipou2"
# tunl-ip = ["172.28.9.1"]
# tunl-peer-ip = ["172.28.9.0"]
# fou-dev = "s1"
# fou-local-port = 10002
# fou-remote-ip = "192.0.2.7"
# fou-remote-port = 4500
# reply-on-auth-ok = false
# # auth-token is set; --with-secrets shows it
# [[tunnel]]
# client = true
# number = 3
# mode = "ipip"
# encap = "fou"
# tunl-dev = "ipipou3"
# tunl-ip = ["172.28.9.3"]
# tunl-peer-ip = ["172.28.9.2"]
# fou-dev = "s0"
# fou-local-port = 10003
# fou-remote-ip = "other.example"
# fou-remote-port = 4501
# reply-on-auth-ok = false
# # auth-token is set; --with-secrets shows it
set -u
NAME=many
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
	# first IPv4 address of s0
	: "${FOU_IP:=$(word 4 ip -4 -o address show dev s0)}"
	[ -n "$FOU_IP" ] || die 2 's0 does not exist or has no IPv4 address: give --fou-local-ip, or another --fou-dev'
	# first IPv4 address of s1
	: "${FOU_IP_2:=$(word 4 ip -4 -o address show dev s1)}"
	[ -n "$FOU_IP_2" ] || die 2 's1 does not exist or has no IPv4 address: give --fou-local-ip, or another --fou-dev'
	# outer address of ipipou2's server
	: "${PEER_IP:=192.0.2.7}"
	# UDP port of ipipou2's server
	: "${PEER_PORT:=4500}"
	# outer address of ipipou3's server, other.example
	: "${PEER_IP_2:=$(word 1 getent ahostsv4 other.example)}"
	[ -n "$PEER_IP_2" ] || die 2 'other.example has no IPv4 address, or there is no getent to ask: set PEER_IP_2'
	# UDP port of ipipou3's server
	: "${PEER_PORT_2:=4501}"
	return 0
}

# What a later call must know of this one.
remember() {
	set_var FOU_IP "$FOU_IP"
	set_var FOU_IP_2 "$FOU_IP_2"
	set_var PEER_IP "$PEER_IP"
	set_var PEER_PORT "$PEER_PORT"
	set_var PEER_IP_2 "$PEER_IP_2"
	set_var PEER_PORT_2 "$PEER_PORT_2"
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
	# somebody else's interface of this name is never touched
	absent 'interface ipipou1 exists already' 'ipipou1 *|ipipou1@*' ip -br link show || fail 52
	# somebody else's interface of this name is never touched
	absent 'interface ipipou2 exists already' 'ipipou2 *|ipipou2@*' ip -br link show || fail 52
	# somebody else's interface of this name is never touched
	absent 'interface ipipou3 exists already' 'ipipou3 *|ipipou3@*' ip -br link show || fail 52
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
			${FOU_IP} . 10001,
			172.29.0.1 . 10001,
		}
	}
	map peers {
		type ipv4_addr . inet_service . ipv4_addr . inet_service : verdict
		size 72
	}
	map alt_in {
		type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr
	}
	map alt_out {
		type ipv4_addr . inet_service : ipv4_addr
		elements = {
			172.29.0.0 . 10000 : ${FOU_IP},
			172.29.0.1 . 10001 : ${FOU_IP},
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
	set alive {
		type ipv4_addr . inet_service . ipv4_addr . inet_service
		flags dynamic,timeout
	}
	chain timed {
		ip daddr . udp dport . ip saddr . udp sport != @alive counter drop
		ip daddr . udp dport { ${FOU_IP} . 10000 } update @alive { ip daddr . udp dport . ip saddr . udp sport timeout 60s }
		goto alternate
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
			up_or_9_2
		else
			fail 53
		fi
	}
	# what comes to the FOU port is taken out of its UDP
	pending undo_listener_1 ||
		taken "port 10001 ipproto 4|port 10001 ipproto 4 local ${FOU_IP}|port 10001 ipproto 4 local ${FOU_IP} *" ip fou show
	pending undo_listener_1 ||
		try "undo_listener_1 ${FOU_IP}" ip fou add port 10001 ipproto 4 local "${FOU_IP}" dev s0 || {
		if exists && prints "port 10001 ipproto 4|port 10001 ipproto 4 local ${FOU_IP}|port 10001 ipproto 4 local ${FOU_IP} dev *" ip fou show; then
			say 'a FOU listener on port 10001 exists already: it is used, and will stay'
		elif unsupported; then
			say 'this kernel or iproute2 can'\''t bind a FOU listener to one address: the listener is on all'
			up_or_10_2
		else
			fail 53
		fi
	}
	# ipipou2: the tunnel to the server
	try undo_up_11 ip link add name ipipou2 type ipip remote "${PEER_IP}" local "${FOU_IP_2}" encap fou encap-sport 10002 encap-dport "${PEER_PORT}" mode ipip dev s1 || fail 52
	# what the server sends to the FOU port is taken out of its UDP; the kernel refuses other senders
	pending undo_listener_2 ||
		taken "port 10002 ipproto 4|port 10002 ipproto 4 local ${FOU_IP_2}|port 10002 ipproto 4 local ${FOU_IP_2} *" ip fou show
	pending undo_listener_2 ||
		try "undo_listener_2 ${FOU_IP_2} ${PEER_IP} ${PEER_PORT}" ip fou add port 10002 ipproto 4 local "${FOU_IP_2}" peer "${PEER_IP}" peer_port "${PEER_PORT}" dev s1 || {
		if exists && prints "port 10002 ipproto 4|port 10002 ipproto 4 local ${FOU_IP_2}|port 10002 ipproto 4 local ${FOU_IP_2} dev *|port 10002 ipproto 4 local ${FOU_IP_2} peer ${PEER_IP} peer_port ${PEER_PORT}|port 10002 ipproto 4 local ${FOU_IP_2} peer ${PEER_IP} peer_port ${PEER_PORT} *" ip fou show; then
			say 'a FOU listener on port 10002 exists already: it is used, and will stay'
		elif unsupported; then
			say 'this kernel or iproute2 can'\''t bind a FOU listener to one peer: the listener is open to all senders'
			up_or_12_2
		else
			fail 53
		fi
	}
	# inner addresses of both ends
	try '' ip address add 172.28.9.1 peer 172.28.9.0 dev ipipou2 || fail 51
	try '' ip link set dev ipipou2 up || fail 52
	# ipipou3: the tunnel to the server
	try undo_up_15 ip link add name ipipou3 type ipip remote "${PEER_IP_2}" local "${FOU_IP}" encap fou encap-sport 10003 encap-dport "${PEER_PORT_2}" mode ipip dev s0 || fail 52
	# what the server sends to the FOU port is taken out of its UDP; the kernel refuses other senders
	pending undo_listener_3 ||
		taken "port 10003 ipproto 4|port 10003 ipproto 4 local ${FOU_IP}|port 10003 ipproto 4 local ${FOU_IP} *" ip fou show
	pending undo_listener_3 ||
		try "undo_listener_3 ${FOU_IP} ${PEER_IP_2} ${PEER_PORT_2}" ip fou add port 10003 ipproto 4 local "${FOU_IP}" peer "${PEER_IP_2}" peer_port "${PEER_PORT_2}" dev s0 || {
		if exists && prints "port 10003 ipproto 4|port 10003 ipproto 4 local ${FOU_IP}|port 10003 ipproto 4 local ${FOU_IP} dev *|port 10003 ipproto 4 local ${FOU_IP} peer ${PEER_IP_2} peer_port ${PEER_PORT_2}|port 10003 ipproto 4 local ${FOU_IP} peer ${PEER_IP_2} peer_port ${PEER_PORT_2} *" ip fou show; then
			say 'a FOU listener on port 10003 exists already: it is used, and will stay'
		elif unsupported; then
			say 'this kernel or iproute2 can'\''t bind a FOU listener to one peer: the listener is open to all senders'
			up_or_16_2
		else
			fail 53
		fi
	}
	# inner addresses of both ends
	try '' ip address add 172.28.9.3 peer 172.28.9.2 dev ipipou3 || fail 51
	try '' ip link set dev ipipou3 up || fail 52
	return 0
}

up_or_9_2() {
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

up_or_10_2() {
	# FOU listener in the form that older kernels and iproute2 know
	pending undo_plain_listener_1 ||
		try undo_plain_listener_1 ip fou add port 10001 ipproto 4 || {
		if exists && prints "port 10001 ipproto 4|port 10001 ipproto 4 local ${FOU_IP}|port 10001 ipproto 4 local ${FOU_IP} dev *" ip fou show; then
			say 'a FOU listener on port 10001 exists already: it is used, and will stay'
		else
			fail 53
		fi
	}
	return 0
}

up_or_12_2() {
	# FOU listener in the form that older kernels and iproute2 know
	pending undo_plain_listener_2 ||
		try undo_plain_listener_2 ip fou add port 10002 ipproto 4 || {
		if exists && prints "port 10002 ipproto 4|port 10002 ipproto 4 local ${FOU_IP_2}|port 10002 ipproto 4 local ${FOU_IP_2} dev *" ip fou show; then
			say 'a FOU listener on port 10002 exists already: it is used, and will stay'
		else
			fail 53
		fi
	}
	return 0
}

up_or_16_2() {
	# FOU listener in the form that older kernels and iproute2 know
	pending undo_plain_listener_3 ||
		try undo_plain_listener_3 ip fou add port 10003 ipproto 4 || {
		if exists && prints "port 10003 ipproto 4|port 10003 ipproto 4 local ${FOU_IP}|port 10003 ipproto 4 local ${FOU_IP} dev *" ip fou show; then
			say 'a FOU listener on port 10003 exists already: it is used, and will stay'
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
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} }
delete element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} }
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} timeout 60s }
add element ip ipipou0 peers { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : goto timed }
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
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} }
delete element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} }
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} timeout 60s }
add element ip ipipou0 peers { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : goto timed }
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
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
delete element ip ipipou0 alive { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
add element ip ipipou0 bare { ${PEER_IP} . ${FOU_IP} }
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} }
delete element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} }
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} timeout 60s }
add element ip ipipou0 peers { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : goto timed }
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
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
delete element ip ipipou0 alive { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
add element ip ipipou0 bare { ${PEER_IP} . 172.29.0.0 }
add element ip ipipou0 alt_in { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : 172.29.0.0 }
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} }
delete element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} }
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} timeout 60s }
add element ip ipipou0 peers { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : goto timed }
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
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
delete element ip ipipou0 alive { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
add element ip ipipou0 bare { ${PEER_IP} . 172.29.0.0 }
add element ip ipipou0 alt_in { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : 172.29.0.0 }
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} }
delete element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} }
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} timeout 60s }
add element ip ipipou0 peers { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : goto timed }
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
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
delete element ip ipipou0 alive { ${FOU_IP} . 10000 . ${OLD_IP} . ${OLD_PORT} }
add element ip ipipou0 bare { ${PEER_IP} . ${FOU_IP} }
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} }
delete element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} }
add element ip ipipou0 alive { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} timeout 60s }
add element ip ipipou0 peers { ${FOU_IP} . 10000 . ${PEER_IP} . ${PEER_PORT} : goto timed }
EOF
	return 0
}

bind_1() {
	# ipipou1: the tunnel to the peer
	try undo_bind_1_1 ip link add name ipipou1 type ipip remote "${PEER_IP}" local "${FOU_IP}" encap fou encap-sport 10001 encap-dport "${PEER_PORT}" mode ipip dev s0 || {
		if exists; then
			say 'another tunnel has these two outer addresses already: using the alternate local address 172.29.0.1'
			bind_1_or_1_1
			return
		else
			fail 52
		fi
	}
	# inner addresses of both ends
	try '' ip address add 172.28.0.2 peer 172.28.0.3 dev ipipou1 || fail 51
	# open the gate to the peer
	try "passing_undo_bind_1_3 ${FOU_IP} ${PEER_IP} ${PEER_PORT}" nft -f - <<EOF || fail 40
add element ip ipipou0 bare { ${PEER_IP} . ${FOU_IP} }
add element ip ipipou0 peers { ${FOU_IP} . 10001 . ${PEER_IP} . ${PEER_PORT} : goto pass }
EOF
	try '' ip link set dev ipipou1 up || fail 52
	return 0
}

bind_1_or_1_1() {
	# alternate local address; nft rewrites it, it is never seen outside
	pending undo_alternate_address_1 ||
		taken '*' ip -4 -o address show to 172.29.0.1/32
	pending undo_alternate_address_1 ||
		try undo_alternate_address_1 ip address add 172.29.0.1/32 scope global dev s0 || {
		if exists; then
			say 'the alternate local address 172.29.0.1 exists already: it is used, and will stay'
		else
			fail 51
		fi
	}
	# what comes to the FOU port is taken out of its UDP
	pending undo_alternate_listener_1 ||
		taken 'port 10001 ipproto 4|port 10001 ipproto 4 local 172.29.0.1|port 10001 ipproto 4 local 172.29.0.1 *' ip fou show
	pending undo_alternate_listener_1 ||
		try undo_alternate_listener_1 ip fou add port 10001 ipproto 4 local 172.29.0.1 dev s0 || {
		if exists && prints 'port 10001 ipproto 4|port 10001 ipproto 4 local 172.29.0.1|port 10001 ipproto 4 local 172.29.0.1 dev *' ip fou show; then
			say 'a FOU listener on port 10001 exists already: it is used, and will stay'
		elif unsupported; then
			say 'this kernel or iproute2 can'\''t bind a FOU listener to one address: the listener is on all'
			bind_1_or_1_1_or_2_2
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
	# ipipou1: the tunnel to the peer, from the alternate local address
	try undo_bind_1_or_1_1_4 ip link add name ipipou1 type ipip remote "${PEER_IP}" local 172.29.0.1 encap fou encap-sport 10001 encap-dport "${PEER_PORT}" mode ipip dev s0 || fail 52
	# inner addresses of both ends
	try '' ip address add 172.28.0.2 peer 172.28.0.3 dev ipipou1 || fail 51
	# open the gate to the peer, and rewrite its packets to the alternate address
	try "passing_undo_bind_1_or_1_1_6 ${FOU_IP} ${PEER_IP} ${PEER_PORT}" nft -f - <<EOF || fail 40
add element ip ipipou0 bare { ${PEER_IP} . 172.29.0.1 }
add element ip ipipou0 alt_in { ${FOU_IP} . 10001 . ${PEER_IP} . ${PEER_PORT} : 172.29.0.1 }
add element ip ipipou0 peers { ${FOU_IP} . 10001 . ${PEER_IP} . ${PEER_PORT} : goto alternate }
EOF
	try '' ip link set dev ipipou1 up || fail 52
	return 0
}

bind_1_or_1_1_or_2_2() {
	# FOU listener in the form that older kernels and iproute2 know
	pending undo_plain_alternate_listener_1 ||
		try undo_plain_alternate_listener_1 ip fou add port 10001 ipproto 4 || {
		if exists && prints "port 10001 ipproto 4|port 10001 ipproto 4 local ${FOU_IP}|port 10001 ipproto 4 local ${FOU_IP} dev *" ip fou show; then
			say 'a FOU listener on port 10001 exists already: it is used, and will stay'
		else
			fail 53
		fi
	}
	return 0
}

rebind_1() {
	# ipipou1: the tunnel to the peer's new address
	try "passing_undo_rebind_1_1 ${OLD_IP} ${OLD_LOCAL} ${OLD_PORT}" ip link set dev ipipou1 type ipip remote "${PEER_IP}" local "${FOU_IP}" encap fou encap-sport 10001 encap-dport "${PEER_PORT}" dev s0 || {
		if exists; then
			say 'another tunnel has these two outer addresses already: using the alternate local address 172.29.0.1'
			rebind_1_or_1_1
			return
		else
			fail 52
		fi
	}
	# shut the gate to the old address and open it to the new one
	try '' nft -f - <<EOF || {
delete element ip ipipou0 peers { ${FOU_IP} . 10001 . ${OLD_IP} . ${OLD_PORT} }
delete element ip ipipou0 bare { ${OLD_IP} . ${OLD_LOCAL} }
add element ip ipipou0 alt_in { ${FOU_IP} . 10001 . ${OLD_IP} . ${OLD_PORT} : 172.29.0.1 }
delete element ip ipipou0 alt_in { ${FOU_IP} . 10001 . ${OLD_IP} . ${OLD_PORT} }
add element ip ipipou0 bare { ${PEER_IP} . ${FOU_IP} }
add element ip ipipou0 peers { ${FOU_IP} . 10001 . ${PEER_IP} . ${PEER_PORT} : goto pass }
EOF
		if gone; then
			say 'ipipou1: the gate did not have the peer'\''s old address any more'
			rebind_1_or_2_1
		else
			fail 40
		fi
	}
	# the alternate address, if it was in use, is not needed any more
	take_back undo_alternate_listener_1 || :
	take_back undo_alternate_address_1 || :
	return 0
}

rebind_1_or_1_1() {
	# alternate local address; nft rewrites it, it is never seen outside
	pending undo_alternate_address_1 ||
		taken '*' ip -4 -o address show to 172.29.0.1/32
	pending undo_alternate_address_1 ||
		try undo_alternate_address_1 ip address add 172.29.0.1/32 scope global dev s0 || {
		if exists; then
			say 'the alternate local address 172.29.0.1 exists already: it is used, and will stay'
		else
			fail 51
		fi
	}
	# what comes to the FOU port is taken out of its UDP
	pending undo_alternate_listener_1 ||
		taken 'port 10001 ipproto 4|port 10001 ipproto 4 local 172.29.0.1|port 10001 ipproto 4 local 172.29.0.1 *' ip fou show
	pending undo_alternate_listener_1 ||
		try undo_alternate_listener_1 ip fou add port 10001 ipproto 4 local 172.29.0.1 dev s0 || {
		if exists && prints 'port 10001 ipproto 4|port 10001 ipproto 4 local 172.29.0.1|port 10001 ipproto 4 local 172.29.0.1 dev *' ip fou show; then
			say 'a FOU listener on port 10001 exists already: it is used, and will stay'
		elif unsupported; then
			say 'this kernel or iproute2 can'\''t bind a FOU listener to one address: the listener is on all'
			rebind_1_or_1_1_or_2_2
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
	# ipipou1: the tunnel to the peer's new address
	try "passing_undo_rebind_1_or_1_1_4 ${OLD_IP} ${OLD_LOCAL} ${OLD_PORT}" ip link set dev ipipou1 type ipip remote "${PEER_IP}" local 172.29.0.1 encap fou encap-sport 10001 encap-dport "${PEER_PORT}" dev s0 || fail 52
	# shut the gate to the old address and open it to the new one
	try '' nft -f - <<EOF || {
delete element ip ipipou0 peers { ${FOU_IP} . 10001 . ${OLD_IP} . ${OLD_PORT} }
delete element ip ipipou0 bare { ${OLD_IP} . ${OLD_LOCAL} }
add element ip ipipou0 alt_in { ${FOU_IP} . 10001 . ${OLD_IP} . ${OLD_PORT} : 172.29.0.1 }
delete element ip ipipou0 alt_in { ${FOU_IP} . 10001 . ${OLD_IP} . ${OLD_PORT} }
add element ip ipipou0 bare { ${PEER_IP} . 172.29.0.1 }
add element ip ipipou0 alt_in { ${FOU_IP} . 10001 . ${PEER_IP} . ${PEER_PORT} : 172.29.0.1 }
add element ip ipipou0 peers { ${FOU_IP} . 10001 . ${PEER_IP} . ${PEER_PORT} : goto alternate }
EOF
		if gone; then
			say 'ipipou1: the gate did not have the peer'\''s old address any more'
			rebind_1_or_1_1_or_5_1
		else
			fail 40
		fi
	}
	return 0
}

rebind_1_or_1_1_or_2_2() {
	# FOU listener in the form that older kernels and iproute2 know
	pending undo_plain_alternate_listener_1 ||
		try undo_plain_alternate_listener_1 ip fou add port 10001 ipproto 4 || {
		if exists && prints "port 10001 ipproto 4|port 10001 ipproto 4 local ${FOU_IP}|port 10001 ipproto 4 local ${FOU_IP} dev *" ip fou show; then
			say 'a FOU listener on port 10001 exists already: it is used, and will stay'
		else
			fail 53
		fi
	}
	return 0
}

rebind_1_or_1_1_or_5_1() {
	try '' nft -f - <<EOF || :
delete element ip ipipou0 peers { ${FOU_IP} . 10001 . ${OLD_IP} . ${OLD_PORT} }
EOF
	try '' nft -f - <<EOF || :
delete element ip ipipou0 bare { ${OLD_IP} . ${OLD_LOCAL} }
EOF
	try '' nft -f - <<EOF || fail 40
add element ip ipipou0 alt_in { ${FOU_IP} . 10001 . ${OLD_IP} . ${OLD_PORT} : 172.29.0.1 }
delete element ip ipipou0 alt_in { ${FOU_IP} . 10001 . ${OLD_IP} . ${OLD_PORT} }
add element ip ipipou0 bare { ${PEER_IP} . 172.29.0.1 }
add element ip ipipou0 alt_in { ${FOU_IP} . 10001 . ${PEER_IP} . ${PEER_PORT} : 172.29.0.1 }
add element ip ipipou0 peers { ${FOU_IP} . 10001 . ${PEER_IP} . ${PEER_PORT} : goto alternate }
EOF
	return 0
}

rebind_1_or_2_1() {
	try '' nft -f - <<EOF || :
delete element ip ipipou0 peers { ${FOU_IP} . 10001 . ${OLD_IP} . ${OLD_PORT} }
EOF
	try '' nft -f - <<EOF || :
delete element ip ipipou0 bare { ${OLD_IP} . ${OLD_LOCAL} }
EOF
	try '' nft -f - <<EOF || fail 40
add element ip ipipou0 alt_in { ${FOU_IP} . 10001 . ${OLD_IP} . ${OLD_PORT} : 172.29.0.1 }
delete element ip ipipou0 alt_in { ${FOU_IP} . 10001 . ${OLD_IP} . ${OLD_PORT} }
add element ip ipipou0 bare { ${PEER_IP} . ${FOU_IP} }
add element ip ipipou0 peers { ${FOU_IP} . 10001 . ${PEER_IP} . ${PEER_PORT} : goto pass }
EOF
	return 0
}

rebind_2() {
	# the listener on the old address
	take_back undo_listener_2 || :
	take_back undo_plain_listener_2 || :
	# ipipou2: the tunnel from the new address
	try '' ip link set dev ipipou2 type ipip remote "${PEER_IP}" local "${FOU_IP_2}" encap fou encap-sport 10002 encap-dport "${PEER_PORT}" dev s1 || fail 52
	# what the server sends to the FOU port is taken out of its UDP; the kernel refuses other senders
	pending undo_listener_2 ||
		taken "port 10002 ipproto 4|port 10002 ipproto 4 local ${FOU_IP_2}|port 10002 ipproto 4 local ${FOU_IP_2} *" ip fou show
	pending undo_listener_2 ||
		try "undo_listener_2 ${FOU_IP_2} ${PEER_IP} ${PEER_PORT}" ip fou add port 10002 ipproto 4 local "${FOU_IP_2}" peer "${PEER_IP}" peer_port "${PEER_PORT}" dev s1 || {
		if exists && prints "port 10002 ipproto 4|port 10002 ipproto 4 local ${FOU_IP_2}|port 10002 ipproto 4 local ${FOU_IP_2} dev *|port 10002 ipproto 4 local ${FOU_IP_2} peer ${PEER_IP} peer_port ${PEER_PORT}|port 10002 ipproto 4 local ${FOU_IP_2} peer ${PEER_IP} peer_port ${PEER_PORT} *" ip fou show; then
			say 'a FOU listener on port 10002 exists already: it is used, and will stay'
		elif unsupported; then
			say 'this kernel or iproute2 can'\''t bind a FOU listener to one peer: the listener is open to all senders'
			rebind_2_or_4_2
		else
			fail 53
		fi
	}
	return 0
}

rebind_2_or_4_2() {
	# FOU listener in the form that older kernels and iproute2 know
	pending undo_plain_listener_2 ||
		try undo_plain_listener_2 ip fou add port 10002 ipproto 4 || {
		if exists && prints "port 10002 ipproto 4|port 10002 ipproto 4 local ${FOU_IP_2}|port 10002 ipproto 4 local ${FOU_IP_2} dev *" ip fou show; then
			say 'a FOU listener on port 10002 exists already: it is used, and will stay'
		else
			fail 53
		fi
	}
	return 0
}

rebind_3() {
	# the listener on the old address
	take_back undo_listener_3 || :
	take_back undo_plain_listener_3 || :
	# ipipou3: the tunnel from the new address
	try '' ip link set dev ipipou3 type ipip remote "${PEER_IP_2}" local "${FOU_IP}" encap fou encap-sport 10003 encap-dport "${PEER_PORT_2}" dev s0 || fail 52
	# what the server sends to the FOU port is taken out of its UDP; the kernel refuses other senders
	pending undo_listener_3 ||
		taken "port 10003 ipproto 4|port 10003 ipproto 4 local ${FOU_IP}|port 10003 ipproto 4 local ${FOU_IP} *" ip fou show
	pending undo_listener_3 ||
		try "undo_listener_3 ${FOU_IP} ${PEER_IP_2} ${PEER_PORT_2}" ip fou add port 10003 ipproto 4 local "${FOU_IP}" peer "${PEER_IP_2}" peer_port "${PEER_PORT_2}" dev s0 || {
		if exists && prints "port 10003 ipproto 4|port 10003 ipproto 4 local ${FOU_IP}|port 10003 ipproto 4 local ${FOU_IP} dev *|port 10003 ipproto 4 local ${FOU_IP} peer ${PEER_IP_2} peer_port ${PEER_PORT_2}|port 10003 ipproto 4 local ${FOU_IP} peer ${PEER_IP_2} peer_port ${PEER_PORT_2} *" ip fou show; then
			say 'a FOU listener on port 10003 exists already: it is used, and will stay'
		elif unsupported; then
			say 'this kernel or iproute2 can'\''t bind a FOU listener to one peer: the listener is open to all senders'
			rebind_3_or_4_2
		else
			fail 53
		fi
	}
	return 0
}

rebind_3_or_4_2() {
	# FOU listener in the form that older kernels and iproute2 know
	pending undo_plain_listener_3 ||
		try undo_plain_listener_3 ip fou add port 10003 ipproto 4 || {
		if exists && prints "port 10003 ipproto 4|port 10003 ipproto 4 local ${FOU_IP}|port 10003 ipproto 4 local ${FOU_IP} dev *" ip fou show; then
			say 'a FOU listener on port 10003 exists already: it is used, and will stay'
		else
			fail 53
		fi
	}
	return 0
}

# Undos, run in reverse order of their steps.
passing_undo_bind_0_3() {
	run nft -f - <<EOF
delete element ip ipipou0 peers { ${1} . 10000 . ${2} . ${3} }
delete element ip ipipou0 bare { ${2} . ${1} }
add element ip ipipou0 alt_in { ${1} . 10000 . ${2} . ${3} : 172.29.0.0 }
delete element ip ipipou0 alt_in { ${1} . 10000 . ${2} . ${3} }
add element ip ipipou0 alive { ${1} . 10000 . ${2} . ${3} }
delete element ip ipipou0 alive { ${1} . 10000 . ${2} . ${3} }
EOF
}
passing_undo_bind_0_or_1_1_6() {
	run nft -f - <<EOF
delete element ip ipipou0 peers { ${1} . 10000 . ${2} . ${3} }
delete element ip ipipou0 bare { ${2} . 172.29.0.0 }
add element ip ipipou0 alt_in { ${1} . 10000 . ${2} . ${3} : 172.29.0.0 }
delete element ip ipipou0 alt_in { ${1} . 10000 . ${2} . ${3} }
add element ip ipipou0 alive { ${1} . 10000 . ${2} . ${3} }
delete element ip ipipou0 alive { ${1} . 10000 . ${2} . ${3} }
EOF
}
passing_undo_bind_1_3() {
	run nft -f - <<EOF
delete element ip ipipou0 peers { ${1} . 10001 . ${2} . ${3} }
delete element ip ipipou0 bare { ${2} . ${1} }
add element ip ipipou0 alt_in { ${1} . 10001 . ${2} . ${3} : 172.29.0.1 }
delete element ip ipipou0 alt_in { ${1} . 10001 . ${2} . ${3} }
EOF
}
passing_undo_bind_1_or_1_1_6() {
	run nft -f - <<EOF
delete element ip ipipou0 peers { ${1} . 10001 . ${2} . ${3} }
delete element ip ipipou0 bare { ${2} . 172.29.0.1 }
add element ip ipipou0 alt_in { ${1} . 10001 . ${2} . ${3} : 172.29.0.1 }
delete element ip ipipou0 alt_in { ${1} . 10001 . ${2} . ${3} }
EOF
}
passing_undo_rebind_0_1() {
	run ip link set dev ipipou0 type ipip remote "${1}" local "${2}" encap fou encap-sport 10000 encap-dport "${3}" dev s0
}
passing_undo_rebind_0_or_1_1_4() {
	run ip link set dev ipipou0 type ipip remote "${1}" local "${2}" encap fou encap-sport 10000 encap-dport "${3}" dev s0
}
passing_undo_rebind_1_1() {
	run ip link set dev ipipou1 type ipip remote "${1}" local "${2}" encap fou encap-sport 10001 encap-dport "${3}" dev s0
}
passing_undo_rebind_1_or_1_1_4() {
	run ip link set dev ipipou1 type ipip remote "${1}" local "${2}" encap fou encap-sport 10001 encap-dport "${3}" dev s0
}
undo_alternate_address_0() {
	run ip address del 172.29.0.0/32 dev s0
}
undo_alternate_address_1() {
	run ip address del 172.29.0.1/32 dev s0
}
undo_alternate_listener_0() {
	run ip fou del port 10000 local 172.29.0.0 dev s0
}
undo_alternate_listener_1() {
	run ip fou del port 10001 local 172.29.0.1 dev s0
}
undo_bind_0_1() {
	run ip link del dev ipipou0
}
undo_bind_0_or_1_1_4() {
	run ip link del dev ipipou0
}
undo_bind_1_1() {
	run ip link del dev ipipou1
}
undo_bind_1_or_1_1_4() {
	run ip link del dev ipipou1
}
undo_gate() {
	run nft delete table ip ipipou0
}
undo_listener_0() {
	run ip fou del port 10000 local "${1}" dev s0
}
undo_listener_1() {
	run ip fou del port 10001 local "${1}" dev s0
}
undo_listener_2() {
	run ip fou del port 10002 local "${1}" peer "${2}" peer_port "${3}" dev s1
}
undo_listener_3() {
	run ip fou del port 10003 local "${1}" peer "${2}" peer_port "${3}" dev s0
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
undo_plain_alternate_listener_1() {
	run ip fou del port 10001
}
undo_plain_listener_0() {
	run ip fou del port 10000
}
undo_plain_listener_1() {
	run ip fou del port 10001
}
undo_plain_listener_2() {
	run ip fou del port 10002
}
undo_plain_listener_3() {
	run ip fou del port 10003
}
undo_up_11() {
	run ip link del dev ipipou2
}
undo_up_15() {
	run ip link del dev ipipou3
}

payload_2() {
	# /etc/ipipou/many.token must hold the token; AUTH_TOKEN_FILE in the environment names another file
	payload_token "${AUTH_TOKEN_FILE:-/etc/ipipou/many.token}"
}

payload_3() {
	# /etc/ipipou/many.token must hold the token; AUTH_TOKEN_FILE_2 in the environment names another file
	payload_token "${AUTH_TOKEN_FILE_2:-/etc/ipipou/many.token}"
}

# Each client's authentication; `payloads` only makes them, before anything is done.
payloads() {
	payload_2 || return
	payload_3 || return
}
authenticate() {
	payload_2 && send_payload "${FOU_IP_2}" 10002 "${PEER_IP}" "${PEER_PORT}" || return
	say 'ipipou2: authentication sent'
	payload_3 && send_payload "${FOU_IP}" 10003 "${PEER_IP_2}" "${PEER_PORT_2}" || return
	say 'ipipou3: authentication sent'
}

status() {
	show ip -d -s link show dev ipipou0
	show ip address show dev ipipou0
	show ip -d -s link show dev ipipou1
	show ip address show dev ipipou1
	show ip -d -s link show dev ipipou2
	show ip address show dev ipipou2
	show ip -d -s link show dev ipipou3
	show ip address show dev ipipou3
	show ip fou show
	show nft list table ip ipipou0
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

op_bind_1() {
	peer "${1-}" "${2-}"
	facts
	unbound ipipou1
	begin
	bind_1
	done_with
}
op_move_1() {
	peer "${1-}" "${2-}"
	facts
	ends ipipou1
	begin
	rebind_1
	done_with
}

op_move_2() {
	unset FOU_IP_2
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
	rebind_2
	remember
	done_with
}

op_move_3() {
	unset FOU_IP
	if [ -n "${1-}" ]; then
		ipv4 "$1"
		PEER_IP_2=$1
	else
		unset PEER_IP_2
	fi
	if [ -n "${2-}" ]; then
		port "$2"
		PEER_PORT_2=$2
	fi
	facts
	begin
	rebind_3
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
	unset FOU_IP_2
	unset PEER_IP
	unset PEER_PORT
	unset PEER_IP_2
	unset PEER_PORT_2
	load
	facts
	now=$(word 4 ip -4 -o address show dev s0)
	[ -z "$now" ] || [ "$now" = "$FOU_IP" ] || op_move_3 '' ''
	now=$(word 4 ip -4 -o address show dev s1)
	[ -z "$now" ] || [ "$now" = "$FOU_IP_2" ] || op_move_2 '' ''
	authenticate
}
op_keepalive() {
	[ -s "$JOURNAL" ] || die 1 "$NAME is not up: run $0 up"
	keepalive_loop "$1" beat
}

usage() { die 2 "usage: $0 up | down | bind IP PORT [DEV] | rebind IP PORT [DEV] | auth | keepalive SEC | status"; }

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
	ipipou1)
		case $1 in
		bind) locked op_bind_1 "${2-}" "${3-}" ;;
		*) locked op_move_1 "${2-}" "${3-}" ;;
		esac
		;;
	ipipou2)
		[ "$1" = rebind ] || die 2 'ipipou2 can'\''t be bound, only a server'\''s tunnel can'
		locked op_move_2 "${2-}" "${3-}"
		locked op_auth
		;;
	ipipou3)
		[ "$1" = rebind ] || die 2 'ipipou3 can'\''t be bound, only a server'\''s tunnel can'
		locked op_move_3 "${2-}" "${3-}"
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
