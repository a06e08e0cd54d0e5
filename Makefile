# On a fresh Debian machine, as root:
#   make test         everything that is tested, the virtual machine's tests too
#   make demo         a server, a NAT and two clients, shown step by step: on this
#                     kernel, in namespaces, by BPF
#   make demo-kernel  the same in the virtual machine, by the kernel's FOU
# and
#   make              the program
#   make deb          a Debian package of it, in dist/
#   make dist         it alone for amd64, arm64, arm, mips and mipsle, in dist/
#   make kernels      the BPF data path's tests on KERNELS (5.10 6.1 6.12)
#   make bench        the cost of the gate and of BPF, in counted instructions
#   make bench-host   BPF on this kernel beside wireguard-go, with many peers, and with many tunnels
#   make fuzz         each fuzz target for FUZZTIME (60s)
#   make long         that, and loads of a minute: what `.ci/run long` adds

export PATH := /usr/lib/go-1.23/bin:$(PATH):/usr/sbin:/sbin:/usr/local/go/bin
# An older Go fetches the one that go.mod asks for.
export GOTOOLCHAIN := auto

PACKAGES := . ./authd ./datapath ./instance ./instance/check ./instance/probe ./plans ./runner ./testdata/lab/demo
LAB := ./testdata/lab ./testdata/lab/labrun ./packaging
FUZZTIME := 60s

ipipou: FORCE
	@.ci/setup build
	CGO_ENABLED=0 go build -o ipipou .

deb:
	@.ci/setup build
	packaging/build.sh deb dist

dist:
	@.ci/setup build
	packaging/build.sh dist dist

test: check unit packages demo lab

setup:
	@.ci/setup

check: setup
	test -z "$$(gofmt -l . | tee /dev/stderr)"
	go vet $(PACKAGES) $(LAB)
	go tool staticcheck $(PACKAGES) $(LAB)
	shellcheck testdata/scripts/*.sh testdata/lab/*.sh testdata/cli/fake.sh datapath/build.sh .ci/run .ci/setup authd/testdata/*.sh packaging/build.sh packaging/deb/p*

# CI=true: a test that can't run here fails instead of being skipped.
unit: setup
	CI=true go test -race -count=1 $(PACKAGES)

# Built twice, for the same bytes; and what is built runs.
packages: setup
	CI=true go test -count=1 -timeout 15m ./packaging

# What needs no drivers of the kernel's own runs on this one; then all in the
# virtual machine.
lab: setup host
	CI=true go test -count=1 -timeout 25m -skip '^TestBPF|^TestHeadersLikeKernel' ./testdata/lab

# The BPF data path on other kernels; some minutes each.
KERNELS := 5.10 6.1 6.12
kernels: setup
	for k in $(KERNELS); do \
	  IPIPOU_LAB_KERNEL=$$k CI=true go test -count=1 -timeout 19m -run '^TestBPF|^TestHeadersLikeKernel' ./testdata/lab || exit 1; \
	done

host: setup
	CI=true IPIPOU_LAB_HOST=1 go test -count=1 -timeout 10m -run '^TestBPF' ./testdata/lab

# Compiles the BPF programs anew, after a change of their source.
bpf: setup
	datapath/build.sh

demo: setup
	go run ./testdata/lab/demo

demo-kernel: setup
	go run ./testdata/lab/demo -kernel

bench: setup
	IPIPOU_LAB_ICOUNT=1 go test -count=1 -timeout 60m -run '^$$' -bench 'Gate|Backends|Rebind' ./testdata/lab

# Wants a machine that does nothing else.
bench-host: setup
	IPIPOU_LAB_HOST=1 go test -count=1 -timeout 60m -run '^$$' -bench 'Host|Peers|Tunnels' ./testdata/lab

fuzz: setup
	for p in $(PACKAGES); do \
	  for f in $$(go test -list '^Fuzz' $$p | grep ^Fuzz); do \
	    go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p || exit 1; \
	  done; \
	done

# Tests of a load take as long as it says, instead of what shows that it is borne.
long: fuzz
	CI=true IPIPOU_LAB_HOST=1 IPIPOU_LAB_LONG=1 go test -count=1 -timeout 20m -run '^Test(Net|BPF).*(Storm|Flood)' ./authd ./testdata/lab
	CI=true IPIPOU_LAB_LONG=1 go test -count=1 -timeout 90m -run '^Test(Storm|Killed|Challenge)' ./testdata/lab

FORCE:
.PHONY: deb dist test setup check unit packages lab kernels host bpf demo demo-kernel bench bench-host fuzz long FORCE
