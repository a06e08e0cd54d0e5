#!/bin/sh
# Stands in for ip, nft, modprobe and sysctl: notes the call, prints the file of that
# name in answers/ if there is one, and fails with $FAIL_SAYS where the call begins with
# $FAIL. A batch is done line by line. The variables are those of ipipou, which does
# not pass them on.
PATH=/usr/bin:/bin
[ -n "$CALLS" ] || eval "$(tr '\0' '\n' <"/proc/$PPID/environ" | sed -n "
	s/'/'\\\\''/g
	s/^\(CALLS\|ANSWERS\|FAIL\|FAIL_SAYS\|PRESENT\)=\(.*\)/\1='\2'/p")"
export CALLS ANSWERS FAIL FAIL_SAYS PRESENT
call=$*
case $call in
*"-batch -")
	options=${call%-batch -} n=0 failed=0
	case $options in *"-force "*) force=1 options=${options%-force } ;; *) force= ;; esac
	while read -r line; do
		n=$((n + 1))
		# shellcheck disable=SC2086 # the words are wanted
		"$0" $options $line </dev/null || {
			echo "Command failed -:$n" >&2
			failed=1
			[ "$force" ] || exit 1
		}
	done
	exit "$failed"
	;;
esac
call="${0##*/} $*"
[ "$call" != "nft -f -" ] || call="$call $(cat | tr '\n' ' ')"
printf '%s\n' "$call" >>"$CALLS"
case $call in
"ip -4 -o address show dev lo"*) echo '1: lo    inet 127.0.0.1/8 scope host lo\       valid_lft forever' ;;
"ip -4 -o address show to 127.0.0.1"*) echo '1: lo    inet 127.0.0.1/8 scope host lo\       valid_lft forever' ;;
"ip -o link show dev lo"*) echo '1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536' ;;
"ip -4 -o address show dev"*) echo 'Device "x" does not exist.' >&2; exit 1 ;;
"ip -br link show") [ -z "$PRESENT" ] || echo 'ipipou0@NONE     UP' ;;
"ip -d -s -j link show dev"*) [ -e "$ANSWERS/$call" ] || { echo 'Device "x" does not exist.' >&2; exit 1; } ;;
esac
[ ! -e "$ANSWERS/$call" ] || cat "$ANSWERS/$call"
if [ -n "$FAIL" ]; then
	case $call in
	"$FAIL"*)
		printf '%s\n' "${FAIL_SAYS:-RTNETLINK answers: Operation not supported}" >&2
		exit 2
		;;
	esac
fi
