package authd

import (
	"log/slog"
	"net/netip"
)

// Event returns the fields of an authentication's event, for those who let a
// machine read the log; the record's message says the same in words. They are a
// group without a key: slog's own handlers show its fields as the record's, and
// a log for people leaves it out.
//
// The fields are event, tunnel and peer ("192.0.2.1:10000"), each if there is
// one, and more, such as reason (see [Reason]). The events of a server are
// waiting, accepted, refused, bound and moved, those of a client sent, up, lost,
// silent and ignored. An event of either is failed: the host did not let us.
func Event(event, tunnel string, peer netip.AddrPort, more ...slog.Attr) slog.Attr {
	attrs := []slog.Attr{slog.String("event", event)}
	if tunnel != "" {
		attrs = append(attrs, slog.String("tunnel", tunnel))
	}
	if peer.IsValid() {
		attrs = append(attrs, slog.String("peer", peer.String()))
	}
	return slog.Attr{Value: slog.GroupValue(append(attrs, more...)...)}
}
