package plans

import (
	"fmt"
	"strings"
	"testing"
)

// crowded is the file of n tunnels: of servers with a port each, of peers of one server's port (BPF alone has that), or
// of clients.
func crowded(n int, shape string, backend Backend) string {
	var b strings.Builder
	fmt.Fprintf(&b, "backend = %q\nfou-dev = \"eth0\"\nreply-on-auth-ok = true\n", backend)
	switch shape {
	case "hub":
		b.WriteString("server = true\nfou-local-port = 10000\ntunl-dev = \"ipipou0\"\ntunl-ip = \"10.0.0.0\"\n")
	case "servers":
		b.WriteString("server = true\n")
	}
	for i := range n {
		fmt.Fprintf(&b, "[[tunnel]]\nnumber = %d\nauth-token = \"token %d\"\n", i, i)
		inner := fmt.Sprintf("10.%d.%d.%d", (2*i+1)>>16, (2*i+1)>>8&255, (2*i+1)&255)
		switch shape {
		case "hub":
			fmt.Fprintf(&b, "tunl-peer-ip = %q\n", inner)
		case "clients":
			fmt.Fprintf(&b, "fou-remote = \"192.0.2.1:%d\"\ntunl-ip = %q\n", 10000+i, inner)
		}
	}
	return b.String()
}

// BenchmarkMany is what a file of many tunnels costs before anything is run: to read it, to know what would be done, and
// to print it.
func BenchmarkMany(b *testing.B) {
	for _, shape := range []string{"hub", "servers", "clients"} {
		for _, backend := range []Backend{BPF, Kernel} {
			if shape == "hub" && backend == Kernel {
				continue
			}
			for _, n := range []int{1000, 10000} {
				text := []byte(crowded(n, shape, backend))
				read := func(string) ([]byte, error) { return text, nil }
				config := func() Config {
					f, err := Load("/etc/ipipou/many.toml", read)
					if err != nil {
						b.Fatal(err)
					}
					c, err := Resolve([]string{"many"}, []File{f}, nil, read)
					if err != nil {
						b.Fatal(err)
					}
					return c
				}
				c := config()
				for _, part := range []struct {
					name string
					do   func()
				}{
					{"read", func() { config() }},
					{"up", func() { c.Up() }},
					{"print", func() { Script(c, Describe(c, false), false) }},
				} {
					b.Run(fmt.Sprintf("%s/%s/%d/%s", shape, backend, n, part.name), func(b *testing.B) {
						b.ReportAllocs()
						for b.Loop() {
							part.do()
						}
					})
				}
			}
		}
	}
}
