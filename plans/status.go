package plans

// What is here lets others find what a tunnel is on a host where it is up.

// Kind is what ip-link(8) calls the tunnel's interface where the kernel's drivers
// carry it.
func (t Tunnel) Kind() string { return t.how().kind }

// FilterHandle is the handle of the instance's filters as tc(8) prints it; "" if BPF
// can't carry the tunnel.
func (t Tunnel) FilterHandle() string { return t.bpf.handle }

// Peers are the numbers by which the maps of the BPF programs know the tunnel's peers:
// one, or one for each node.
func (t Tunnel) Peers() []int {
	var numbers []int
	for i := range t.bpf.peers {
		numbers = append(numbers, t.bpf.first+i)
	}
	return numbers
}

// Protocol is the IP protocol of the tunnel's outer packets without UDP (IANA's numbers);
// 0 if it is more than one.
func (t Tunnel) Protocol() int { return t.how().proto }

// GateTable is the name of the nft table that is the gate of the servers, whose packets it
// drops in the chain gate; "" if none has such a one.
func (c Config) GateTable() string {
	if len(c.gated()) == 0 {
		return ""
	}
	return c.table()
}
