package plans

// Exit codes of a step that failed, those of the Python tool.
const (
	ExitGeneral   = 1
	ExitUsage     = 2
	ExitModprobe  = 10
	ExitNft       = 40
	ExitIPAddress = 51
	ExitIPLink    = 52
	ExitIPFou     = 53
	ExitBPF       = 54  // which the Python tool does not have: bpftool, tc
	ExitDeaf      = 127 // a script can't hear what a client has to
	ExitCleanup   = 200
)

// ExitCode is the exit code for a command that failed.
func ExitCode(argv []string) int {
	if len(argv) == 0 {
		return ExitGeneral
	}
	switch argv[0] {
	case "modprobe":
		return ExitModprobe
	case "nft":
		return ExitNft
	case "bpftool", "tc":
		return ExitBPF
	case "ip":
		for _, w := range argv[1:] {
			switch w {
			case "address":
				return ExitIPAddress
			case "link", "tuntap":
				return ExitIPLink
			case "fou":
				return ExitIPFou
			}
		}
	}
	return ExitGeneral
}
