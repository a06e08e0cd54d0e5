#!/bin/sh
# [[tunnel]]
# client = true
# number = 0
# backend = "bpf"
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
	# first IPv4 address of c0
	: "${FOU_IP:=$(word 4 ip -4 -o address show dev c0)}"
	[ -n "$FOU_IP" ] || die 2 'c0 does not exist or has no IPv4 address: give --fou-local-ip, or another --fou-dev'
	# outer address of ipipou0's server, server.example
	: "${PEER_IP:=$(word 1 getent ahostsv4 server.example)}"
	[ -n "$PEER_IP" ] || die 2 'server.example has no IPv4 address, or there is no getent to ask: set PEER_IP'
	# UDP port of ipipou0's server
	: "${PEER_PORT:=10000}"
	# index of c0
	: "${OUTER_INDEX:=$(number 1 0 ip -o link show dev c0)}"
	[ -n "$OUTER_INDEX" ] || die 2 'c0 does not exist: give another --fou-dev'
	# MTU that fits c0's
	: "${TUNL_MTU:=$(number 5 28 ip -o link show dev c0)}"
	[ -n "$TUNL_MTU" ] || die 2 'c0 does not exist: give another --fou-dev'
	return 0
}

# What a later call must know of this one.
remember() {
	set_var FOU_IP "$FOU_IP"
	set_var PEER_IP "$PEER_IP"
	set_var PEER_PORT "$PEER_PORT"
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
	try "undo_up_3 ${RUN_DIR}" mkdir -p "${RUN_DIR}/ipipou0.bpf" || fail 1
	try "undo_up_4 ${RUN_DIR}" mount -t bpf -o nosuid,nodev,noexec,mode=700 ipipou "${RUN_DIR}/ipipou0.bpf" || fail 1
	# the programs' maps, as large as they have to be
	try '' bpftool map create "${RUN_DIR}/ipipou0.bpf/devices" type hash key 4 value 48 entries 1 name devices || fail 54
	try '' bpftool map create "${RUN_DIR}/ipipou0.bpf/endpoints" type hash key 8 value 48 entries 4 name endpoints || fail 54
	try '' bpftool map create "${RUN_DIR}/ipipou0.bpf/prefixes" type hash key 20 value 4 entries 1 name prefixes || fail 54
	try '' bpftool map create "${RUN_DIR}/ipipou0.bpf/peers" type array key 4 value 16 entries 2 name peers || fail 54
	try '' bpftool map create "${RUN_DIR}/ipipou0.bpf/seen" type array key 4 value 4 entries 2 name seen || fail 54
	try '' bpftool map create "${RUN_DIR}/ipipou0.bpf/counters" type percpu_array key 4 value 104 entries 2 name counters || fail 54
	# the programs
	pending undo_object ||
		try "undo_object ${RUN_DIR}" unpacked dd "of=${RUN_DIR}/ipipou0.bpf.o" || fail 1
	try '' bpftool prog loadall "${RUN_DIR}/ipipou0.bpf.o" "${RUN_DIR}/ipipou0.bpf/programs" map name devices pinned "${RUN_DIR}/ipipou0.bpf/devices" map name endpoints pinned "${RUN_DIR}/ipipou0.bpf/endpoints" map name prefixes pinned "${RUN_DIR}/ipipou0.bpf/prefixes" map name peers pinned "${RUN_DIR}/ipipou0.bpf/peers" map name seen pinned "${RUN_DIR}/ipipou0.bpf/seen" map name counters pinned "${RUN_DIR}/ipipou0.bpf/counters" || {
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
	DEVICES_MAP=$(number 1 0 bpftool map show pinned "${RUN_DIR}/ipipou0.bpf/devices")
	[ -n "$DEVICES_MAP" ] || {
		STEP="bpftool map show pinned \"${RUN_DIR}/ipipou0.bpf/devices\"" ERR='bpftool does not show the map devices'
		fail 54
	}
	ENDPOINTS_MAP=$(number 1 0 bpftool map show pinned "${RUN_DIR}/ipipou0.bpf/endpoints")
	[ -n "$ENDPOINTS_MAP" ] || {
		STEP="bpftool map show pinned \"${RUN_DIR}/ipipou0.bpf/endpoints\"" ERR='bpftool does not show the map endpoints'
		fail 54
	}
	PEERS_MAP=$(number 1 0 bpftool map show pinned "${RUN_DIR}/ipipou0.bpf/peers")
	[ -n "$PEERS_MAP" ] || {
		STEP="bpftool map show pinned \"${RUN_DIR}/ipipou0.bpf/peers\"" ERR='bpftool does not show the map peers'
		fail 54
	}
	COUNTERS_MAP=$(number 1 0 bpftool map show pinned "${RUN_DIR}/ipipou0.bpf/counters")
	[ -n "$COUNTERS_MAP" ] || {
		STEP="bpftool map show pinned \"${RUN_DIR}/ipipou0.bpf/counters\"" ERR='bpftool does not show the map counters'
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
	try '' tc filter add dev ipipou0 egress pref 17280 handle 0x30b9c85d bpf direct-action object-pinned "${RUN_DIR}/ipipou0.bpf/programs/egress" || fail 54
	# what the programs must know: interfaces, where their packets arrive, networks and peers
	try '' bpftool batch file - <<EOF || fail 54
map update pinned ${RUN_DIR}/ipipou0.bpf/devices key $(le32 "${TUN_INDEX}") value $(le32 "${TUN_INDEX}") $(le32 "${OUTER_INDEX}") $(ip4 "${FOU_IP}") 39 16 1 0 0 0 1 0 1 0 0 0 32 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255
map update pinned ${RUN_DIR}/ipipou0.bpf/endpoints key 0 0 0 0 39 16 17 0 value $(le32 "${TUN_INDEX}") $(le32 "${OUTER_INDEX}") $(ip4 "${FOU_IP}") 39 16 1 0 0 0 1 0 1 0 0 0 32 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255
map update pinned ${RUN_DIR}/ipipou0.bpf/prefixes key 1 0 4 32 172 28 0 0 0 0 0 0 0 0 0 0 0 0 0 0 value 1 0 0 0
map update pinned ${RUN_DIR}/ipipou0.bpf/peers key 1 0 0 0 value $(ip4 "${PEER_IP}") $(be16 "${PEER_PORT}") 0 0 0 0 0 0 0 0 0 0
EOF
	# inner addresses of both ends
	try '' ip address add 172.28.0.1 peer 172.28.0.0 dev ipipou0 || fail 51
	try '' ip link set dev ipipou0 mtu "${TUNL_MTU}" up || fail 52
	# where c0's filters are, if there are none yet
	pending undo_clsact_0 ||
		taken 'qdisc clsact *' tc qdisc show dev c0
	pending undo_clsact_0 ||
		try undo_clsact_0 tc qdisc add dev c0 clsact || {
		if exists; then
			say 'c0 has a queueing discipline for filters already: it is used, and will stay'
		else
			fail 54
		fi
	}
	# the gate, and the way in: what bound peers send goes to the tunnel, what else comes to the port is dropped
	pending undo_ingress_0 ||
		try undo_ingress_0 tc filter add dev c0 ingress protocol all pref 17280 handle 0x30b9c85d bpf direct-action object-pinned "${RUN_DIR}/ipipou0.bpf/programs/ingress" || fail 54
	return 0
}

rebind_0() {
	# the outer interface is another one if the program is not there
	quiet tc filter get dev c0 ingress protocol all pref 17280 handle 0x30b9c85d bpf ||
		take_back undo_ingress_0 || :
	quiet tc filter get dev c0 ingress protocol all pref 17280 handle 0x30b9c85d bpf ||
		take_back undo_clsact_0 || :
	# ipipou0: the tunnel from the new address
	try '' bpftool batch file - <<EOF || {
map update pinned ${RUN_DIR}/ipipou0.bpf/devices key $(le32 "${TUN_INDEX}") value $(le32 "${TUN_INDEX}") $(le32 "${OUTER_INDEX}") $(ip4 "${FOU_IP}") 39 16 1 0 0 0 1 0 1 0 0 0 32 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255
map update pinned ${RUN_DIR}/ipipou0.bpf/endpoints key 0 0 0 0 39 16 17 0 value $(le32 "${TUN_INDEX}") $(le32 "${OUTER_INDEX}") $(ip4 "${FOU_IP}") 39 16 1 0 0 0 1 0 1 0 0 0 32 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255
map update pinned ${RUN_DIR}/ipipou0.bpf/peers key 1 0 0 0 value $(ip4 "${PEER_IP}") $(be16 "${PEER_PORT}") 0 0 0 0 0 0 0 0 0 0
EOF
		if gone; then
			say 'the pinned maps are in another mount namespace: they are known by their ids'
			rebind_0_or_3_1
		else
			fail 54
		fi
	}
	# where c0's filters are, if there are none yet
	pending undo_clsact_0 ||
		taken 'qdisc clsact *' tc qdisc show dev c0
	pending undo_clsact_0 ||
		try undo_clsact_0 tc qdisc add dev c0 clsact || {
		if exists; then
			say 'c0 has a queueing discipline for filters already: it is used, and will stay'
		else
			fail 54
		fi
	}
	# the gate, and the way in: what bound peers send goes to the tunnel, what else comes to the port is dropped
	pending undo_ingress_0 ||
		try undo_ingress_0 tc filter add dev c0 ingress protocol all pref 17280 handle 0x30b9c85d bpf direct-action object-pinned "${RUN_DIR}/ipipou0.bpf/programs/ingress" || fail 54
	return 0
}

rebind_0_or_3_1() {
	try '' bpftool batch file - <<EOF || fail 54
map update id ${DEVICES_MAP} key $(le32 "${TUN_INDEX}") value $(le32 "${TUN_INDEX}") $(le32 "${OUTER_INDEX}") $(ip4 "${FOU_IP}") 39 16 1 0 0 0 1 0 1 0 0 0 32 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255
map update id ${ENDPOINTS_MAP} key 0 0 0 0 39 16 17 0 value $(le32 "${TUN_INDEX}") $(le32 "${OUTER_INDEX}") $(ip4 "${FOU_IP}") 39 16 1 0 0 0 1 0 1 0 0 0 32 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255 255
map update id ${PEERS_MAP} key 1 0 0 0 value $(ip4 "${PEER_IP}") $(be16 "${PEER_PORT}") 0 0 0 0 0 0 0 0 0 0
EOF
	return 0
}

# Undos, run in reverse order of their steps.
undo_clsact_0() {
	! quiet ip link show dev c0 || needed tc filter show dev c0 ingress || needed tc filter show dev c0 egress || run tc qdisc del dev c0 clsact
}
undo_ingress_0() {
	! quiet tc filter get dev c0 ingress protocol all pref 17280 handle 0x30b9c85d bpf || run tc filter del dev c0 ingress protocol all pref 17280 handle 0x30b9c85d bpf
}
undo_object() {
	run rm -f "${1}/ipipou0.bpf.o"
}
undo_up_19() {
	run ip link del dev ipipou0
}
undo_up_3() {
	run rmdir "${1}/ipipou0.bpf"
}
undo_up_4() {
	! quiet mountpoint -q "${RUN_DIR}/ipipou0.bpf" || run umount "${1}/ipipou0.bpf"
}

# The compiled BPF programs (datapath/ipipou.bpf.c), gzip in base64.
object() {
	base64 -d <<'EOF' | gzip -dc
H4sI
EOF
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
	show tc -s filter show dev c0 ingress
	[ -s "$JOURNAL" ] || return 0
	counters 'ipipou0 peer 0' 1 "${RUN_DIR}/ipipou0.bpf/counters" rx-packets rx-bytes tx-packets tx-bytes stranger source expired no-data fragment congested no-route too-big failed
	counters nobody 0 "${RUN_DIR}/ipipou0.bpf/counters" rx-packets rx-bytes tx-packets tx-bytes stranger source expired no-data fragment congested no-route too-big failed
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
	unset OUTER_INDEX
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
	unset OUTER_INDEX
	unset TUNL_MTU
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
find_tc
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
