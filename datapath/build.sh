#!/bin/sh
# Compiles the BPF programs: build.sh [OBJECT], by default the one that is embedded.
# The same compiler gives the same bytes, wherever the source lies, so CI can tell that
# they belong to it. No debug information stays but the types (BTF), which libbpf wants.
set -eu
cd "$(dirname "$0")"
object=${1:-ipipou.bpf.o}
clang-14 -O2 -g -target bpf -mcpu=v3 -Wall -Werror -ffile-prefix-map="$PWD=." \
	-I"/usr/include/$(uname -m)-linux-gnu" -c ipipou.bpf.c -o "$object"
llvm-strip-14 -g "$object"
llvm-objcopy-14 --remove-section .BTF.ext --remove-section .rel.BTF.ext "$object"
