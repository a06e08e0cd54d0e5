
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
