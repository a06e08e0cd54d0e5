
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
