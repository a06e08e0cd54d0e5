#!/bin/sh
# Stands in for a tool that a tested program runs, under the tool's name and before it in PATH: ends or fails the program
# at one of its commands, and is the tool itself at all others. Which one is told by files in the program's working
# directory, written by the test (crash_test.go):
#
#   target  three lines: what to do there, at which of equal commands (from 1), the command's words
#   stdin   the command's input without its digits, if it has any: numbers of devices and times differ each time
#   seen    how many such commands there have been, if there were any
#
# To do there:
#   after   run it, then end the program as by kill -9
#   before  end the program so, and don't run it
#   TERM    run it, with the program told to end meanwhile
#   fail    don't run it but fail, and again whenever it is tried again
#
# Each line of `ip -batch -` and `tc -batch -` is a command of its own. As few processes as can be: they are what takes long in the lab.
tool=${0##*/}
dir=. # which is inherited
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
[ -e "$dir/target" ] || exec "$tool" "$@"
{
	read -r todo
	read -r which
	IFS= read -r words
} <"$dir/target"

# hit counts a command that is like the target, and says whether it is the one.
hit() {
	n=0
	[ ! -e "$dir/seen" ] || read -r n <"$dir/seen"
	n=$((n + 1))
	echo $n >"$dir/seen"
	if [ "$todo" = fail ]; then
		[ $n -ge "$which" ]
	else
		[ $n -eq "$which" ]
	fi
}

# fail ends as the tool does when the kernel says no.
fail() {
	echo 'RTNETLINK answers: Operation not permitted (injected failure)' >&2
	if [ "$tool" = ip ]; then exit 2; else exit 1; fi
}

# act does what is to be done around a command of the tool's, given as the words to run, with its input as stdin.
act() {
	case $todo in
	after)
		"$@"
		kill -9 "$PPID"
		;;
	before)
		kill -9 "$PPID"
		;;
	TERM)
		kill -TERM "$PPID"
		"$@"
		;;
	esac
	exit
}

# batch is the tool with `-batch -`, split around the target.
batch() {
	lines='' blank='' count=0 options='' force=''
	for word; do
		case $word in
		-batch | -) ;;
		-force) force=1 ;;
		*) options="$options $word" ;;
		esac
	done
	while IFS= read -r line; do
		count=$((count + 1))
		blank="$blank
"
		if [ "$tool$options $line" != "$words" ] || ! hit; then
			lines="$lines$line
"
			continue
		fi
		if [ "$todo" != fail ]; then
			[ "$todo" = before ] || lines="$lines$line
"
			case $todo in
			before)
				printf %s "$lines" | "$tool" "$@"
				act
				;;
			TERM) { printf %s "$lines"; cat; } | act "$tool" "$@" ;;
			*) printf %s "$lines" | act "$tool" "$@" ;;
			esac
			exit
		fi
		printf %s "$lines" | "$tool" "$@" || [ "$force" ] || exit
		echo 'RTNETLINK answers: Operation not permitted (injected failure)' >&2
		echo "Command failed -:$count" >&2
		[ ! "$force" ] || { printf %s "$blank"; cat; } | "$tool" "$@" # which counts its lines
		exit 1
	done
	printf %s "$lines" | exec "$tool" "$@"
	exit
}

case "$tool $*" in
*" -batch -") batch "$@" ;;
"$words") ;;
*) exec "$tool" "$@" ;;
esac

if [ -e "$dir/stdin" ]; then
	cat >"$dir/input"
	exec <"$dir/input"
	tr -d 0-9 <"$dir/input" | cmp -s - "$dir/stdin" || exec "$tool" "$@"
fi
hit || exec "$tool" "$@"
[ "$todo" != fail ] || fail
act "$tool" "$@"
