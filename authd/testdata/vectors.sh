#!/bin/sh
# Makes vectors.json, the test vectors of wire protocol version 1, with nothing
# of ours: ed25519 by the openssl command (3.0 or later), bytes by printf and od.
#
#	sh vectors.sh > vectors.json
set -eu

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# unhex HEX: the bytes on stdout.
unhex() {
	h=$1
	while [ -n "$h" ]; do
		rest=${h#??}
		# The inner printf gives the octal escape that the outer one prints.
		# shellcheck disable=SC2059
		printf "\\$(printf '%03o' "0x${h%"$rest"}")"
		h=$rest
	done
}

hex() { od -An -v -tx1 | tr -d ' \n'; }

# rev HEX: the bytes in reverse order.
rev() {
	h=$1 r=
	while [ -n "$h" ]; do
		rest=${h#??}
		r=${h%"$rest"}$r
		h=$rest
	done
	printf %s "$r"
}

# key SEED: a PKCS #8 file of an ed25519 seed (RFC 8410, section 7).
key() { unhex "302e020100300506032b657004220420$1" >"$tmp/key"; }

# public SEED: the last 32 bytes of the SubjectPublicKeyInfo (RFC 8410, section 4).
public() {
	key "$1"
	openssl pkey -inform DER -in "$tmp/key" -pubout -outform DER | tail -c 32 | hex
}

# digest HEX: the SHA-256 of the bytes.
digest() {
	unhex "$1" >"$tmp/msg"
	openssl dgst -sha256 -binary "$tmp/msg" | hex
}

# hint SEED SECRET-TEXT SECONDS: the first 2 bytes of the salt that a client of
# ours sends.
hint() {
	both=$(digest "$(printf %s 'ipipou hint' | hex)$(public "$1")$(printf %s "$2" | hex)")
	digest "$both$(printf '%010x' "$3")" | head -c 4
}

# sign SEED HEX: the signature of the bytes.
sign() {
	key "$1"
	unhex "$2" >"$tmp/msg"
	openssl pkeyutl -sign -rawin -keyform DER -inkey "$tmp/key" -in "$tmp/msg" | hex
}

sep=
# signed NAME COMMENT SEED SECRET-TEXT SECONDS SALT EXTRA
signed() {
	time=$(printf '%010x' "$5")
	secret=$(printf %s "$4" | hex)
	# What stands behind the signature, and with the secret is signed.
	tail=$time$6$7
	payload=$(sign "$3" "$tail$secret")$tail
	printf '%s\n\t{\n' "$sep"
	sep=,
	cat <<EOF
		"name": "$1",
		"comment": "$2",
		"seed": "$3",
		"public": "$(public "$3")",
		"secret": "$secret",
		"time": $5,
		"salt": "$6",
		"payload": "$payload",
		"reversed": "$(rev "$payload")"
EOF
	printf '\t}'
}

# hinted NAME COMMENT SEED SECRET-TEXT SECONDS RANDOM: signed, with a hint before
# 2 random bytes.
hinted() { signed "$1" "$2" "$3" "$4" "$5" "$(hint "$3" "$4" "$5")$6" ''; }

# token NAME COMMENT HEX
token() {
	printf '%s\n\t{\n' "$sep"
	sep=,
	cat <<EOF
		"name": "$1",
		"comment": "$2",
		"token": "$3",
		"payload": "$3",
		"reversed": "$(rev "$3")"
EOF
	printf '\t}'
}

client=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
server=202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f

printf '['
signed 'client' 'client to server, default secret' \
	$client netprickle.com 1700000000 01020304 ''
signed 'server' 'server to client: the signed reply to the above, of the same form' \
	$server netprickle.com 1700000001 a0b0c0d0 ''
signed 'no secret' 'the signed message is time and salt alone' \
	$client '' 1700000000 01020304 ''
signed 'utf-8' 'a secret that is not ASCII, a time that fills the five bytes' \
	$client 'ключ' 1099511627775 ffffffff ''
signed 'early' 'a time whose upper bytes are 0' \
	$client netprickle.com 1 00000000 ''
signed 'longer' 'more than 73 bytes: all behind the signature is signed' \
	$client netprickle.com 1700000000 01020304 6d6f7265
hinted 'hinted' 'the salt is a hint at the key and secret, and 2 random bytes' \
	$client netprickle.com 1700000000 0304
hinted 'hinted later' 'the hint is another one each second' \
	$client netprickle.com 1700000001 0304
hinted 'hinted, another secret' 'the hint is another one with another secret' \
	$client 'ключ' 1700000000 0304
hinted 'hinted, another key' 'a time that fills the five bytes' \
	$server '' 1099511627775 ffff
token 'token' 'sword-fish' 73776f72642d66697368
token 'binary token' 'a token need not be text' 00ff0a8041
token 'empty' 'address-only: the client sends nothing, the reply is as long' ''
printf '\n]\n'
