#!/bin/sh
# Builds what is handed out, the same bytes from the same sources by the same Go:
#   build.sh deb DIR    a Debian package for this machine's architecture
#   build.sh dist DIR   static programs for each of Linux's architectures below
# It prints the paths. Of a release VERSION is the number; else it is made of the commit.
set -eu
umask 022
cd "$(dirname "$0")/.."

die() {
	echo "build.sh: $*" >&2
	exit 1
}

[ $# = 2 ] || die "usage: build.sh deb|dist DIR"
mkdir -p "$2"
out=$(cd "$2" && pwd)

# Without git, as from a tarball, the time is none.
commit=$(git rev-parse --short=12 HEAD 2>/dev/null) || commit=
if [ -z "${SOURCE_DATE_EPOCH-}" ]; then
	SOURCE_DATE_EPOCH=0
	[ -z "$commit" ] || SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
fi
if [ -z "${VERSION-}" ]; then
	VERSION=0.0~git$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d).${commit:-unknown}
	[ -z "$commit" ] || [ -z "$(git status --porcelain)" ] || VERSION=$VERSION.dirty
fi
# dpkg-deb: the xz of several threads has other bytes than that of one.
export SOURCE_DATE_EPOCH VERSION CGO_ENABLED=0 GOOS=linux GOFLAGS="" GOAMD64=v1 DPKG_DEB_THREADS_MAX=1

# program GOARCH FILE. Nothing of git is in it: the same sources elsewhere give the same.
program() {
	GOARCH=$1 GOARM=5 GOMIPS=softfloat \
		go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.release=$VERSION" -o "$2" .
}

# arm is for version 5 and later, and mips for processors without floating point: one
# program for all routers.
dist() {
	for arch in amd64 arm64 arm mips mipsle; do
		program "$arch" "$out/ipipou-$VERSION-linux-$arch"
		echo "$out/ipipou-$VERSION-linux-$arch"
	done
}

# put FILE PATH [MODE]: into the package.
put() { install -D -m "${3-644}" "$1" "$root/$2"; }

# squeeze FILE PATH: the same, compressed; gzip -n leaves out name and time.
squeeze() {
	mkdir -p "$root/$(dirname "$2")"
	gzip -9n <"$1" >"$root/$2.gz"
}

# The licences of what is linked in, which want to be handed out with it.
copyright() {
	cat packaging/deb/copyright
	go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' . | sort -u |
		while read -r path version dir; do
			printf '\n%s %s:\n\n' "$path" "$version"
			cat "$dir"/LICENSE* "$dir"/COPYING* 2>/dev/null || true
		done
	printf '\nThe Go standard library and runtime:\n\n'
	cat "$(go env GOROOT)/LICENSE"
}

deb() {
	arch=$(dpkg --print-architecture)
	case $arch in
	amd64 | arm64) ;; # Go calls them the same
	*) die "no package for $arch: build.sh dist has programs" ;;
	esac
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	root=$work/root
	program "$arch" "$work/ipipou"
	put "$work/ipipou" usr/bin/ipipou 755
	for unit in packaging/systemd/*; do
		put "$unit" "usr/lib/systemd/system/${unit##*/}"
	done
	mkdir -p "$root/etc/ipipou"
	put packaging/deb/lintian-overrides usr/share/lintian/overrides/ipipou
	doc=usr/share/doc/ipipou
	for example in packaging/examples/* docs/examples/* docs/reference.toml docs/grafana.json; do
		put "$example" "$doc/examples/${example##*/}"
	done
	sed "s,](docs/,](,g" README.md >"$work/README.md"
	squeeze "$work/README.md" "$doc/README.md"
	for page in docs/*.md; do
		squeeze "$page" "$doc/${page##*/}"
	done
	for picture in docs/pictures/*.svg; do
		put "$picture" "$doc/pictures/${picture##*/}"
	done
	for page in docs/*.[1-9]; do
		squeeze "$page" "usr/share/man/man${page##*.}/${page##*/}"
	done
	for shell in bash:bash-completion/completions/ipipou zsh:zsh/vendor-completions/_ipipou fish:fish/vendor_completions.d/ipipou.fish; do
		"$work/ipipou" completion "${shell%%:*}" >"$work/completion"
		put "$work/completion" "usr/share/${shell#*:}"
	done
	copyright >"$work/copyright"
	put "$work/copyright" "$doc/copyright"
	date=$(date -u -R -d "@$SOURCE_DATE_EPOCH")
	maintainer=$(sed -n 's/^Maintainer: //p' packaging/deb/control)
	printf 'ipipou (%s) unstable; urgency=medium\n\n  * Built from commit %s.\n\n -- %s  %s\n' \
		"$VERSION" "${commit:-unknown}" "$maintainer" "$date" >"$work/changelog"
	squeeze "$work/changelog" "$doc/changelog"
	mkdir -p "$root/DEBIAN"
	(cd "$root" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
	sed -e "s/@VERSION@/$VERSION/" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$(du -sk --apparent-size "$root" | cut -f1)/" \
		packaging/deb/control >"$root/DEBIAN/control"
	for script in postinst prerm postrm; do
		put "packaging/deb/$script" "DEBIAN/$script" 755
	done
	find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
	dpkg-deb --root-owner-group -Zxz -b "$root" "$out/ipipou_${VERSION}_$arch.deb" >/dev/null
	echo "$out/ipipou_${VERSION}_$arch.deb"
}

case $1 in
deb | dist) "$1" ;;
*) die "usage: build.sh deb|dist DIR" ;;
esac
