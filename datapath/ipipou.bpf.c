//go:build ignore

// SPDX-License-Identifier: GPL-2.0
/*
 * The data path of a tunnel on a kernel without ipip, sit and fou: two tc programs.
 *
 *   egress   on a TUN device that no process reads: what is routed there gets its
 *            outer header and goes out by the outer device;
 *   ingress  on the outer device: what a peer sent loses its outer header and
 *            comes in by the TUN device. It is the gate too.
 *
 * The wire is that of the kernel's drivers: IPv4 or IPv6 in UDP (FOU, net/ipv4/fou_core.c)
 * or in IPv4 itself (ipip, RFC 2003; sit, RFC 4213). Maps are filled by bpftool; their
 * layout is datapath.go's too. Numbers are in host order unless they are __be.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#ifndef BPF_F_ADJ_ROOM_DECAP_L3_IPV6 /* Linux 6.3 */
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)
#endif

/* <linux/icmp.h> wants a C library for this very target. */
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_ECHO 8
#define ICMP_TIMESTAMP 13
#define ICMP_HOST_UNREACH 1
#define ICMP_FRAG_NEEDED 4
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_ADDR_UNREACH 3
#define ICMPV6_PKT_TOOBIG 2
#define ICMPV6_INFORMATIONAL 0x80

/* <linux/if_packet.h> */
#define PACKET_HOST 0
#define PACKET_OTHERHOST 3

#define IP_DF 0x4000
#define IP_FRAGMENT 0x3fff /* more fragments, or an offset */
#define ECN 3

#define LENGTHS 12      /* different prefix lengths of a device and family */
#define MIN_MTU 552     /* the kernel's ip_rt_min_pmtu */
#define MTU_EXPIRES 600 /* s, the kernel's ip_rt_mtu_expires */
#define QUOTE 128       /* bytes of a packet that an ICMP error quotes */
#define ICMP_EVERY 1000000 /* ns between ICMP errors: 1,000/s, the kernel's icmp_msgs_per_sec */

#define INNER_TOS 1 /* the outer TOS is the inner one */
#define OPEN 2      /* authd wants strangers' data: it authenticates by address only */

/* A device is a tunnel interface with its outer end. */
struct device {
	__u32 ifindex; /* of the TUN device */
	__u32 outer;   /* ifindex of the outer device */
	__be32 local;  /* outer address */
	__be16 port;   /* UDP port; 0: no UDP */
	__u8 inner;    /* 1: carries IPv4, 2: IPv6, 3: both */
	__u8 ttl;      /* of the outer header; 0: the inner one's */
	__u8 tos;      /* of the outer header, less ECN */
	__u8 flags;
	__u16 group;   /* whose prefixes are looked up */
	__u32 sole;    /* the only peer, which has everything; 0: look it up */
	__u8 lengths4[LENGTHS]; /* prefix lengths in use, longest first; 255 ends them */
	__u8 lengths6[LENGTHS];
};

/* Where packets for a device arrive. */
struct endpoint {
	__be32 remote; /* no UDP: the peer's outer address, or 0 for any */
	__be16 port;   /* our UDP port; 0: no UDP */
	__u8 proto;    /* IPPROTO_UDP, IPPROTO_IPIP or IPPROTO_IPV6 */
	__u8 zero;
};

struct prefix {
	__u16 group;
	__u8 family; /* 4 or 6 */
	__u8 length;
	__be32 address[4]; /* IPv4: the first word */
};

struct peer {
	__be32 address; /* outer; 0: nobody is bound */
	__be16 port;
	__u16 zero;
	__u32 since;    /* s of uptime when it was bound, with a lifetime */
	__u32 lifetime; /* s that it may be silent; 0: any time */
};

/* Drops have a reason each; datapath.go names them. */
enum counter {
	RX_PACKETS, RX_BYTES, TX_PACKETS, TX_BYTES,
	STRANGER,  /* data from an address that is not the peer's */
	SOURCE,    /* its inner source is no peer's */
	EXPIRED,   /* the peer has been silent for too long */
	NO_DATA,   /* neither IPv4 nor IPv6 of the right length: authentications, and what is none */
	FRAGMENT,  /* a part of a datagram, which can't be put together here */
	CONGESTED, /* congestion experienced, and the inner packet can't say so (RFC 6040) */
	NO_ROUTE,  /* no peer has the destination, or none is bound */
	TOO_BIG,   /* for the path to the peer */
	FAILED,    /* the kernel could not change the packet */
	COUNTERS
};

struct counters {
	__u64 n[COUNTERS];
};

struct path {
	__u32 mtu;
	__u32 until; /* s of uptime */
};

struct state {
	__u64 icmp_at; /* ns of uptime of the last ICMP error */
	__u32 paths;   /* s of uptime until which any path's MTU is known */
	__u32 zero;
};

/*
 * All but the last two are made by `bpftool map create`, as large as they have to
 * be, and take the place of these.
 */
#define MAP(name, kind, key_type, value_type, entries)  \
	struct {                                        \
		__uint(type, kind);                     \
		__uint(max_entries, entries);           \
		__type(key, key_type);                  \
		__type(value, value_type);              \
	} name SEC(".maps")

MAP(devices, BPF_MAP_TYPE_HASH, __u32, struct device, 1);
MAP(endpoints, BPF_MAP_TYPE_HASH, struct endpoint, struct device, 1);
MAP(prefixes, BPF_MAP_TYPE_HASH, struct prefix, __u32, 1);
MAP(peers, BPF_MAP_TYPE_ARRAY, __u32, struct peer, 1);
MAP(seen, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1);
MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counters, 1);
MAP(paths, BPF_MAP_TYPE_LRU_HASH, __be32, struct path, 1024);
MAP(state, BPF_MAP_TYPE_ARRAY, __u32, struct state, 1);

/* count counts for a peer, 0 for nobody in particular. */
static __always_inline void count(__u32 peer, enum counter what, __u64 n)
{
	struct counters *c = bpf_map_lookup_elem(&counters, &peer);

	if (c)
		c->n[what] += n;
}

/* passed counts a packet, or the segments that it will be: RX_ or TX_PACKETS, and the bytes. */
static __always_inline void passed(__u32 peer, enum counter what, __u32 segments, __u32 bytes)
{
	struct counters *c = bpf_map_lookup_elem(&counters, &peer);

	if (c) {
		c->n[what] += segments ?: 1;
		c->n[what + 1] += bytes;
	}
}

static __always_inline int drop(__u32 peer, enum counter why)
{
	count(peer, why, 1);
	return TC_ACT_SHOT;
}

static __always_inline __u32 uptime(void)
{
	return bpf_ktime_get_boot_ns() / 1000000000;
}

/*
 * What is not for the tunnel but may be for authd goes on as a packet for another
 * host: authd's packet socket gets it, and the kernel's IP forgets it (ip_rcv_core)
 * without telling the sender that there is no such port.
 */
static __always_inline int divert(struct __sk_buff *skb, __u32 peer, enum counter why)
{
	count(peer, why, 1);
	return bpf_skb_change_type(skb, PACKET_OTHERHOST) ? TC_ACT_SHOT : TC_ACT_OK;
}

/* The peer that has the address: one look-up for each prefix length in use. */
static __always_inline __u32 peer_of(struct device *d, __u8 family, const __be32 *address)
{
	const __u8 *lengths = family == 4 ? d->lengths4 : d->lengths6;

#pragma clang loop unroll(disable)
	for (int i = 0; i < LENGTHS; i++) {
		struct prefix key = {.group = d->group, .family = family, .length = lengths[i]};
		int bits = lengths[i];
		__u32 *peer;

		if (bits > 128)
			break;
#pragma unroll
		for (int w = 0; w < 4; w++) {
			if (w > 0 && family == 4)
				break;
			if (bits >= 32)
				key.address[w] = address[w];
			else if (bits > 0)
				key.address[w] = address[w] & bpf_htonl(~0U << (32 - bits));
			bits -= 32;
		}
		peer = bpf_map_lookup_elem(&prefixes, &key);
		if (peer)
			return *peer;
	}
	return 0;
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline __u16 ip_checksum(const struct iphdr *ip)
{
	const __u16 *w = (const void *)ip;
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += w[i];
	return fold(sum);
}

/* Both versions' errors: RFC 792, RFC 1191, RFC 4443. */
struct icmp {
	__u8 type, code;
	__be16 checksum;
	__be16 mtu6; /* the upper half of ICMPv6's MTU */
	__be16 mtu;
};

struct error4 {
	struct iphdr ip;
	struct icmp icmp;
};

struct error6 {
	struct ipv6hdr ip;
	struct icmp icmp;
};

/* What an error is about: unreachable, or too big for the tunnel with this MTU. */
static __always_inline int may_complain(void)
{
	__u32 zero = 0;
	struct state *s = bpf_map_lookup_elem(&state, &zero);
	__u64 now = bpf_ktime_get_boot_ns();

	if (!s || now - s->icmp_at < ICMP_EVERY)
		return 0;
	s->icmp_at = now;
	return 1;
}

/*
 * Makes the packet an error, which quotes n bytes of it. A checksum that is still to
 * be done (CHECKSUM_PARTIAL) is forgotten with that: a device would do it within the
 * quote, which the error's own covers. The kernel forgets it when its place is cut
 * off; twice, for some kernels look before they cut.
 */
static __always_inline int turn(struct __sk_buff *skb, const void *error, __u32 size, const void *quote, __u32 n)
{
	const int cut = 64, more = QUOTE - 64 - sizeof(struct ipv6hdr); /* an IP header must stay */

	if (bpf_skb_change_tail(skb, QUOTE, 0))
		return TC_ACT_SHOT;
	if (bpf_skb_adjust_room(skb, -cut, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return TC_ACT_SHOT;
	if (bpf_skb_adjust_room(skb, -more, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return TC_ACT_SHOT;
	if (bpf_skb_adjust_room(skb, cut + more + size, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return TC_ACT_SHOT;
	if (bpf_skb_store_bytes(skb, 0, error, size, 0) || bpf_skb_store_bytes(skb, size, quote, QUOTE, 0))
		return TC_ACT_SHOT;
	if (bpf_skb_change_tail(skb, size + n, 0))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/*
 * An ICMP error for the packet's sender comes in by the tunnel as if the destination
 * had sent it: our own address would be a martian source. It quotes up to QUOTE bytes.
 */
static __noinline int complain4(struct __sk_buff *skb, __u32 mtu)
{
	char quote[QUOTE] = {};
	struct error4 e = {};
	struct iphdr *ip = (void *)quote;
	__u32 n = skb->len;

	if (n > QUOTE)
		n = QUOTE;
	if (n < sizeof(*ip))
		return TC_ACT_SHOT;
	if (bpf_skb_load_bytes(skb, 0, quote, n))
		return TC_ACT_SHOT;
	/* RFC 1122, 3.2.2: not about a later fragment, a group, nobody, another error. */
	if (ip->frag_off & bpf_htons(0x1fff))
		return TC_ACT_SHOT;
	if (bpf_ntohl(ip->daddr) >= 0xe0000000 || bpf_ntohl(ip->saddr) >= 0xe0000000 || !ip->saddr)
		return TC_ACT_SHOT;
	if (ip->protocol == IPPROTO_ICMP) {
		__u32 at = ip->ihl * 4;
		__u8 type;

		if (bpf_skb_load_bytes(skb, at, &type, 1))
			return TC_ACT_SHOT;
		if (type != ICMP_ECHO && type != ICMP_ECHOREPLY && type < ICMP_TIMESTAMP)
			return TC_ACT_SHOT;
	}
	if (!may_complain())
		return TC_ACT_SHOT;

	e.ip.version = 4;
	e.ip.ihl = 5;
	e.ip.tos = 0xc0; /* RFC 1812, 4.3.2.5 */
	e.ip.tot_len = bpf_htons(sizeof(e) + n);
	e.ip.ttl = 64;
	e.ip.protocol = IPPROTO_ICMP;
	e.ip.saddr = ip->daddr;
	e.ip.daddr = ip->saddr;
	e.ip.id = bpf_get_prandom_u32();
	e.ip.check = ip_checksum(&e.ip);
	e.icmp.type = ICMP_DEST_UNREACH;
	e.icmp.code = ICMP_HOST_UNREACH;
	if (mtu) {
		e.icmp.code = ICMP_FRAG_NEEDED;
		e.icmp.mtu = bpf_htons(mtu);
	}
	e.icmp.checksum = fold(bpf_csum_diff(0, 0, (void *)quote, QUOTE, bpf_csum_diff(0, 0, (void *)&e.icmp, sizeof(e.icmp), 0)));
	return turn(skb, &e, sizeof(e), quote, n);
}

static __noinline int complain6(struct __sk_buff *skb, __u32 mtu)
{
	char quote[QUOTE] = {};
	struct error6 e = {};
	struct ipv6hdr *ip = (void *)quote;
	__u32 n = skb->len;
	__be32 pseudo[2];
	__s64 sum;

	if (n > QUOTE)
		n = QUOTE;
	if (n < sizeof(*ip))
		return TC_ACT_SHOT;
	if (bpf_skb_load_bytes(skb, 0, quote, n))
		return TC_ACT_SHOT;
	/* RFC 4443, 2.4 (e): not to a group or nobody, not about another error. Too big may be about a group. */
	if (ip->saddr.s6_addr[0] == 0xff || !(ip->saddr.s6_addr32[0] | ip->saddr.s6_addr32[1] | ip->saddr.s6_addr32[2] | ip->saddr.s6_addr32[3]))
		return TC_ACT_SHOT;
	if (ip->daddr.s6_addr[0] == 0xff)
		return TC_ACT_SHOT;
	if (ip->nexthdr == IPPROTO_ICMPV6 && !(quote[sizeof(*ip)] & ICMPV6_INFORMATIONAL))
		return TC_ACT_SHOT;
	if (!may_complain())
		return TC_ACT_SHOT;

	e.ip.version = 6;
	e.ip.payload_len = bpf_htons(sizeof(e.icmp) + n);
	e.ip.nexthdr = IPPROTO_ICMPV6;
	e.ip.hop_limit = 64;
	e.ip.saddr = ip->daddr;
	e.ip.daddr = ip->saddr;
	e.icmp.type = ICMPV6_DEST_UNREACH;
	e.icmp.code = ICMPV6_ADDR_UNREACH;
	if (mtu) {
		e.icmp.type = ICMPV6_PKT_TOOBIG;
		e.icmp.code = 0;
		e.icmp.mtu = bpf_htons(mtu); /* an outer packet has 65535 bytes at most */
	}
	pseudo[0] = bpf_htonl(sizeof(e.icmp) + n);
	pseudo[1] = bpf_htonl(IPPROTO_ICMPV6);
	sum = bpf_csum_diff(0, 0, (void *)pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(0, 0, (void *)&e.ip.saddr, 32, sum);
	sum = bpf_csum_diff(0, 0, (void *)&e.icmp, sizeof(e.icmp), sum);
	e.icmp.checksum = fold(bpf_csum_diff(0, 0, (void *)quote, QUOTE, sum));
	return turn(skb, &e, sizeof(e), quote, n);
}

/*
 * The MTU of the path to an outer address as ICMP told it, 0 if it is not known.
 * That no path's is known is told from one word, as it is the rule.
 */
static __always_inline __u32 path_mtu(__be32 to)
{
	__u32 zero = 0, now;
	struct state *s = bpf_map_lookup_elem(&state, &zero);
	struct path *p;

	if (!s || !s->paths)
		return 0;
	now = uptime();
	if (s->paths < now) {
		s->paths = 0;
		return 0;
	}
	p = bpf_map_lookup_elem(&paths, &to);
	return p && p->until >= now ? p->mtu : 0;
}

/* How large the packet is on the wire: that of a part where the kernel will cut it. */
static __always_inline __u32 wire_length(struct __sk_buff *skb, __u32 l4, __u8 proto)
{
	__u8 words = 0;

	if (!skb->gso_size)
		return skb->len;
	if (proto != IPPROTO_TCP)
		return l4 + sizeof(struct udphdr) + skb->gso_size;
	if (bpf_skb_load_bytes(skb, l4 + 12, &words, 1))
		return 0;
	return l4 + (words >> 4) * 4 + skb->gso_size;
}

struct outer {
	struct iphdr ip;
	struct udphdr udp;
};

SEC("tc")
int egress(struct __sk_buff *skb)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
	__u32 index = skb->ifindex, id, mtu, room, l4, length = skb->len;
	__be16 frag_off = bpf_htons(IP_DF);
	__u8 tos, ttl, proto;
	struct outer h = {};
	struct device *d;
	struct peer *p;
	void *data, *end;
	int is6;

	d = bpf_map_lookup_elem(&devices, &index);
	if (!d)
		return TC_ACT_SHOT;
	is6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	if (!is6 && skb->protocol != bpf_htons(ETH_P_IP))
		return drop(0, FAILED);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + (is6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) > end) {
		if (bpf_skb_pull_data(skb, is6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)))
			return drop(0, FAILED);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	if (is6) {
		struct ipv6hdr *ip = data;

		if ((void *)(ip + 1) > end || !(d->inner & 2))
			return drop(0, FAILED);
		id = d->sole ?: peer_of(d, 6, ip->daddr.s6_addr32);
		tos = bpf_ntohs(*(__be16 *)ip) >> 4;
		ttl = ip->hop_limit;
		proto = ip->nexthdr;
		l4 = sizeof(*ip);
	} else {
		struct iphdr *ip = data;

		if ((void *)(ip + 1) > end || !(d->inner & 1))
			return drop(0, FAILED);
		id = d->sole ?: peer_of(d, 4, &ip->daddr);
		tos = ip->tos;
		ttl = ip->ttl;
		proto = ip->protocol;
		l4 = ip->ihl * 4;
	}
	p = bpf_map_lookup_elem(&peers, &id);
	if (!p || !p->address) {
		count(id, NO_ROUTE, 1);
		return is6 ? complain6(skb, 0) : complain4(skb, 0);
	}

	room = d->port ? sizeof(h) : sizeof(h.ip);
	mtu = length + room > MIN_MTU ? path_mtu(p->address) : 0; /* no path is narrower */
	if (mtu) {
		/* No sender goes below these (RFC 8200, 5; the kernel's ip_rt_min_pmtu): a router may cut such a packet. */
		const __u32 least = is6 ? 1280 : MIN_MTU;
		__u32 wire = wire_length(skb, l4, proto);

		if (wire + room > mtu) {
			mtu = mtu > least + room ? mtu - room : least;
			if (wire > mtu) {
				count(id, TOO_BIG, 1);
				return is6 ? complain6(skb, mtu) : complain4(skb, mtu);
			}
			frag_off = 0;
			h.ip.id = bpf_get_prandom_u32();
		}
	}

	h.ip.version = 4;
	h.ip.ihl = 5;
	/* As the drivers do it (INET_ECN_encapsulate of include/net/inet_ecn.h). */
	h.ip.tos = (d->flags & INNER_TOS ? tos & ~ECN : d->tos) | ((tos & ECN) == 3 ? 2 : tos & ECN);
	h.ip.tot_len = bpf_htons(length + room);
	h.ip.frag_off = frag_off;
	h.ip.ttl = d->ttl ?: ttl;
	h.ip.protocol = d->port ? IPPROTO_UDP : is6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	h.ip.saddr = d->local;
	h.ip.daddr = p->address;
	h.ip.check = ip_checksum(&h.ip);
	h.udp.source = d->port;
	h.udp.dest = p->port;
	h.udp.len = bpf_htons(length + sizeof(h.udp));
	if (d->port)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	index = d->outer;

	/*
	 * Of a packet that is another tunnel's already (vxlan, ipip) the kernel has one inner
	 * header in mind, and no place for a second. It needs none to send it in one piece.
	 */
	if (bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, flags) &&
	    (is6 || skb->gso_size || bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO)))
		return drop(id, FAILED);
	if (d->port ? bpf_skb_store_bytes(skb, 0, &h, sizeof(h), 0) : bpf_skb_store_bytes(skb, 0, &h.ip, sizeof(h.ip), 0))
		return drop(id, FAILED);
	/* bpf_redirect_neigh drops what has no Ethernet header, without a word. */
	if (bpf_skb_change_head(skb, ETH_HLEN, 0))
		return drop(id, FAILED);
	passed(id, TX_PACKETS, skb->gso_segs, length);
	return bpf_redirect_neigh(index, 0, 0, 0);
}

/* A router's word that one of our packets was too big for the path (RFC 1191). */
static __noinline int learn(struct __sk_buff *skb, __u32 at)
{
	struct {
		struct icmp icmp;
		struct iphdr ip;
		__be16 source, dest;
	} __attribute__((packed)) e;
	struct endpoint key = {};
	struct device *d;
	struct state *s;
	struct path p;
	__be32 to;
	__u32 zero = 0;

	if (bpf_skb_load_bytes(skb, at, &e, sizeof(e)))
		return TC_ACT_UNSPEC;
	if (e.icmp.type != ICMP_DEST_UNREACH || e.icmp.code != ICMP_FRAG_NEEDED || e.ip.ihl != 5)
		return TC_ACT_UNSPEC;
	key.proto = e.ip.protocol;
	if (key.proto == IPPROTO_UDP)
		key.port = e.source;
	else
		key.remote = e.ip.daddr;
	d = bpf_map_lookup_elem(&endpoints, &key);
	if (!d && key.remote) {
		key.remote = 0;
		d = bpf_map_lookup_elem(&endpoints, &key);
	}
	s = bpf_map_lookup_elem(&state, &zero);
	if (!d || !s || d->local != e.ip.saddr)
		return TC_ACT_UNSPEC;
	if (d->sole) {
		__u32 id = d->sole;
		struct peer *to = bpf_map_lookup_elem(&peers, &id);

		if (!to || to->address != e.ip.daddr || (key.port && to->port != e.dest))
			return TC_ACT_UNSPEC;
	}
	p.mtu = bpf_ntohs(e.icmp.mtu);
	if (p.mtu < MIN_MTU)
		p.mtu = MIN_MTU;
	p.until = uptime() + MTU_EXPIRES;
	to = e.ip.daddr;
	bpf_map_update_elem(&paths, &to, &p, BPF_ANY);
	s->paths = p.until;
	return TC_ACT_UNSPEC;
}

/* ECN of the outer header, on the inner one (RFC 6040, __INET_ECN_decapsulate). */
static __noinline int congestion(struct __sk_buff *skb, __u32 at, __u8 to)
{
	__u8 b[2];

	if (bpf_skb_load_bytes(skb, at, b, 2))
		return -1;
	if (b[0] >> 4 == 6) {
		b[1] = (b[1] & 0xcf) | to << 4;
		return bpf_skb_store_bytes(skb, at, b, 2, BPF_F_RECOMPUTE_CSUM);
	}
	__u8 new = (b[1] & ~ECN) | to;

	if (bpf_l3_csum_replace(skb, at + offsetof(struct iphdr, check), bpf_htons(b[1]), bpf_htons(new), 2))
		return -1;
	/* What the two change in a sum over the packet is nothing: it stays as it is. */
	return bpf_skb_store_bytes(skb, at + 1, &new, 1, 0);
}

/*
 * Takes the outer header off. Where the kernel does not know the flag by which the
 * packet becomes IPv6 (before 6.3), it is translated to IPv6 first, which gives a
 * header that is 20 bytes longer to take off.
 */
static __always_inline int strip(struct __sk_buff *skb, int room, int is6)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;

	if (!is6)
		return bpf_skb_adjust_room(skb, -room, BPF_ADJ_ROOM_MAC, flags);
	if (!bpf_skb_adjust_room(skb, -room, BPF_ADJ_ROOM_MAC, flags | BPF_F_ADJ_ROOM_DECAP_L3_IPV6))
		return 0;
	if (bpf_skb_change_proto(skb, bpf_htons(ETH_P_IPV6), 0))
		return -1;
	return bpf_skb_adjust_room(skb, -room - 20, BPF_ADJ_ROOM_MAC, flags);
}

/*
 * Whether the packet begins with its IP header, on a device without a link layer: then
 * there are as many bytes behind the beginning of that as there are in all.
 */
static __noinline int bare(struct __sk_buff *skb)
{
	__u64 n = (void *)(long)skb->data_end - (void *)(long)skb->data;
	__u8 b;

	asm volatile("" : "+r"(n)); /* or the compiler does with pointers what the kernel forbids */
	return !bpf_skb_load_bytes_relative(skb, n - 1, &b, 1, BPF_HDR_START_NET);
}

/* The checksum of an outer header with options, 0 if it is right. */
static __noinline int checksum(struct __sk_buff *skb, __u32 at, __u32 size)
{
	char h[60] = {};

	if (size < sizeof(struct iphdr) || size > sizeof(h) || bpf_skb_load_bytes(skb, at, h, size))
		return -1;
	return fold(bpf_csum_diff(0, 0, (void *)h, size, 0));
}

/*
 * A checksum that is still to be done (CHECKSUM_PARTIAL) is the outer UDP header's where a
 * socket of this very host sent the packet, or a virtual machine's. That header is gone,
 * and a device would write it into what stands there now. The kernel forgets it when its
 * place is cut off; twice, for some kernels look before they cut.
 */
static __noinline int forget(struct __sk_buff *skb, __u32 at)
{
	__u32 length = skb->len;
	char head[12];

	if (bpf_skb_load_bytes(skb, at, head, sizeof(head)) || bpf_skb_change_tail(skb, length + sizeof(head), 0))
		return -1;
	if (bpf_skb_adjust_room(skb, -8, BPF_ADJ_ROOM_MAC, 0) || bpf_skb_adjust_room(skb, -4, BPF_ADJ_ROOM_MAC, 0) ||
	    bpf_skb_adjust_room(skb, sizeof(head), BPF_ADJ_ROOM_MAC, 0))
		return -1;
	if (bpf_skb_store_bytes(skb, at, head, sizeof(head), 0))
		return -1;
	return bpf_skb_change_tail(skb, length, 0);
}

SEC("tc")
int ingress(struct __sk_buff *skb)
{
	const __u32 most = ETH_HLEN + 60 + sizeof(struct udphdr) + sizeof(struct ipv6hdr);
	__u32 l2 = ETH_HLEN, room, payload, id, index;
	struct endpoint key = {};
	__be16 source = 0, summed = 0;
	__be32 from;
	struct device *d;
	struct peer *p;
	struct iphdr *ip;
	void *data, *end;
	__u8 outer_ecn, inner_ecn, new_ecn, *byte;
	int is6, exact;

	/* A tag without a VLAN (802.1p) says nothing of whose the packet is. */
	if (skb->vlan_present && skb->vlan_tci & 0xfff)
		return TC_ACT_UNSPEC;
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + most > end) {
		if (end - data < skb->len)
			bpf_skb_pull_data(skb, skb->len < most ? skb->len : most);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	/* No Ethernet address of a host is odd, that would be a group's: it is an IP header, most often 0x45. */
	byte = data;
	if ((void *)(byte + 1) > end)
		return TC_ACT_UNSPEC;
	if (*byte & 1 || (*byte >> 4 == 4 && bare(skb)))
		l2 = 0;
	ip = data + l2;
	if ((void *)(ip + 1) > end || ip->version != 4)
		return TC_ACT_UNSPEC;
	room = ip->ihl * 4;
	if (room < sizeof(*ip) || ip->frag_off & bpf_htons(0x1fff))
		return TC_ACT_UNSPEC;
	key.proto = ip->protocol;
	from = ip->saddr;
	if (key.proto == IPPROTO_UDP) {
		struct udphdr *udp = (void *)ip + room;

		if ((void *)(udp + 1) > end)
			return TC_ACT_UNSPEC;
		key.port = udp->dest;
		d = bpf_map_lookup_elem(&endpoints, &key);
		if (!d || d->local != ip->daddr)
			return TC_ACT_UNSPEC;
		source = udp->source;
		summed = udp->check;
		room += sizeof(*udp);
		payload = bpf_ntohs(udp->len) - sizeof(*udp);
		if (bpf_ntohs(udp->len) < sizeof(*udp) || payload + room > bpf_ntohs(ip->tot_len))
			payload = 0;
	} else if (key.proto == IPPROTO_IPIP || key.proto == IPPROTO_IPV6) {
		key.remote = from;
		d = bpf_map_lookup_elem(&endpoints, &key);
		if (!d) {
			key.remote = 0;
			d = bpf_map_lookup_elem(&endpoints, &key);
		}
		if (!d || d->local != ip->daddr)
			return TC_ACT_UNSPEC;
		payload = bpf_ntohs(ip->tot_len) - room;
		if (bpf_ntohs(ip->tot_len) < room)
			payload = 0;
	} else if (key.proto == IPPROTO_ICMP) {
		return learn(skb, l2 + room);
	} else {
		return TC_ACT_UNSPEC;
	}
	/* The kernel's IP drops what is not right, and counts it. */
	if (ip->ihl == 5 ? ip_checksum(ip) : checksum(skb, l2, ip->ihl * 4))
		return TC_ACT_UNSPEC;
	if (ip->frag_off & bpf_htons(IP_FRAGMENT))
		return drop(0, FRAGMENT);
	outer_ecn = ip->tos & ECN;
	if (skb->gso_size)
		payload = skb->len - l2 - room; /* each part will have its own lengths */
	else if (bpf_ntohs(ip->tot_len) + l2 > skb->len)
		return divert(skb, 0, NO_DATA);
	/* In UDP, what is longer than it says may be an authentication. Parts of one packet are all of it; UDP's GRO puts several together. */
	exact = key.port || skb->gso_size;

	byte = (void *)ip + room;
	if ((void *)(byte + sizeof(struct iphdr)) > end)
		return divert(skb, 0, NO_DATA);
	is6 = *byte >> 4 == 6;
	if (is6) {
		struct ipv6hdr *inner = (void *)byte;
		__u32 length;

		if ((void *)(inner + 1) > end || !(d->inner & 2) || key.proto == IPPROTO_IPIP)
			return divert(skb, 0, NO_DATA);
		length = bpf_ntohs(inner->payload_len) + sizeof(*inner);
		if (length > payload || (exact && length != payload))
			return divert(skb, 0, NO_DATA);
		id = d->sole ?: peer_of(d, 6, inner->saddr.s6_addr32);
		inner_ecn = bpf_ntohs(*(__be16 *)inner) >> 4 & ECN;
	} else {
		struct iphdr *inner = (void *)byte;
		__u32 length = bpf_ntohs(inner->tot_len);

		if (inner->version != 4 || inner->ihl < 5 || !(d->inner & 1) || key.proto == IPPROTO_IPV6)
			return divert(skb, 0, NO_DATA);
		if (length > payload || length < inner->ihl * 4 || (exact && length != payload))
			return divert(skb, 0, NO_DATA);
		id = d->sole ?: peer_of(d, 4, &inner->saddr);
		inner_ecn = inner->tos & ECN;
	}
	p = bpf_map_lookup_elem(&peers, &id);
	if (!id || !p)
		return drop(0, SOURCE);
	/* Of nobody's entry all is 0, and 0.0.0.0 can stand in a packet. */
	if (!p->address || p->address != from || p->port != source)
		return d->flags & OPEN ? divert(skb, id, STRANGER) : drop(id, STRANGER);
	if (p->lifetime) {
		__u32 *at = bpf_map_lookup_elem(&seen, &id), now = uptime(), last = p->since;

		if (at && *at > last)
			last = *at;
		if (now > last + p->lifetime)
			return drop(id, EXPIRED);
		if (at && *at != now)
			*at = now;
	}
	if (outer_ecn == 3 && !inner_ecn)
		return drop(id, CONGESTED);
	new_ecn = outer_ecn == 3 ? 3 : outer_ecn == 1 && inner_ecn ? 1 : inner_ecn;
	index = d->ifindex;
	if (inner_ecn == 3)
		new_ecn = 3;
	if (new_ecn != inner_ecn && congestion(skb, l2 + room, new_ecn))
		return drop(id, FAILED);
	/* Padding of a short frame, and what else is none of the packet. */
	if (l2 + room + payload < skb->len && bpf_skb_change_tail(skb, l2 + room + payload, 0))
		return drop(id, FAILED);
	if (strip(skb, room, is6) || (summed && !skb->gso_size && forget(skb, l2)))
		return drop(id, FAILED);
	passed(id, RX_PACKETS, skb->gso_segs, payload);
	return bpf_redirect(index, BPF_F_INGRESS);
}

char _license[] SEC("license") = "GPL";
