
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
