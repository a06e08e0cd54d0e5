package lab

import "golang.org/x/sys/unix"

// raw is a socket that sends whole IPv4 packets, header included.
type raw int

func rawSocket() (raw, error) {
	// IPPROTO_RAW implies that the header is ours.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	return raw(fd), err
}

func (r raw) send(packet []byte, to [4]byte) error {
	return unix.Sendto(int(r), packet, 0, &unix.SockaddrInet4{Addr: to})
}

func (r raw) Close() error { return unix.Close(int(r)) }
