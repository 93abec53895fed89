/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is read of a socket behind a pointer that the verifier trusts. */
#ifndef TT_SOCK_BPF_H
#define TT_SOCK_BPF_H

/*
 * One load, which the compiler does not repeat: others may write at any time, so that a second read gives another value than
 * the first. A process clears sk_err by reading it.
 */
#define read_once(field) (*(volatile typeof(field) *)&(field))

static __always_inline __u32 netns_of(struct sock *sk)
{
	return sk->__sk_common.skc_net.net->ns.inum;
}

/* Other families use the numbers of TCP's protocol and states, and raw sockets its protocol. */
static __always_inline bool is_stream(__u16 family, __u16 type)
{
	return (family == AF_INET || family == AF_INET6) && type == SOCK_STREAM;
}

static __always_inline bool is_tcp(struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_TCP &&
	       is_stream(sk->__sk_common.skc_family, sk->sk_type);
}

/* The same of any pointer, for TCP and for MPTCP. */
static __always_inline bool is_stream_of(struct sock *sk, __u16 protocol)
{
	return BPF_CORE_READ(sk, sk_protocol) == protocol &&
	       is_stream(BPF_CORE_READ(sk, __sk_common.skc_family), BPF_CORE_READ(sk, sk_type));
}

/* The TCP socket itself, or the first subflow of an MPTCP socket; NULL if it is neither. */
static __always_inline struct sock *tcp_part_of(struct sock *sk)
{
	if (bpf_core_type_exists(struct mptcp_sock) && is_stream_of(sk, IPPROTO_MPTCP))
		sk = BPF_CORE_READ((struct mptcp_sock *)sk, first);
	return sk && is_stream_of(sk, IPPROTO_TCP) ? sk : NULL;
}

static __always_inline bool has_flag(struct sock *sk, int bit)
{
	return (sk->__sk_common.skc_flags >> bit) & 1;
}

/* Unique: two events on one CPU are never at the same time. */
static __always_inline __u64 make_up_id(__u64 now)
{
	return TT_MADE_UP_ID | now << 8 | (__u8)bpf_get_smp_processor_id();
}

/* The cookie, which the kernel makes on demand; where it may not be asked, our own id. */
static __always_inline __u64 make_id(struct sock *sk)
{
	if (tt_config.cookies)
		return bpf_get_socket_cookie(sk);
	return (tt_config.own_ids ? 0 : sk->__sk_common.skc_cookie.counter)
		       ?: make_up_id(bpf_ktime_get_ns());
}

static __always_inline void copy_in6(__u8 *to, const struct in6_addr *from)
{
	__be32 *words = (__be32 *)to;

	words[0] = from->in6_u.u6_addr32[0];
	words[1] = from->in6_u.u6_addr32[1];
	words[2] = from->in6_u.u6_addr32[2];
	words[3] = from->in6_u.u6_addr32[3];
}

/*
 * Complete from SYN_SENT's end until the socket is disconnected. The source port is
 * inet_sport: skc_num is 0 once the port was given back.
 */
static __always_inline void read_tuple(struct tt_conn *conn, struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	conn->family = sk->__sk_common.skc_family;
	conn->remote_port = __builtin_bswap16(sk->__sk_common.skc_dport);
	if (tp)
		conn->local_port = __builtin_bswap16(tp->inet_conn.icsk_inet.inet_sport);
	if (conn->family == AF_INET) {
		*(__be32 *)conn->local = sk->__sk_common.skc_rcv_saddr;
		*(__be32 *)conn->remote = sk->__sk_common.skc_daddr;
	} else if (bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		copy_in6(conn->local, &sk->__sk_common.skc_v6_rcv_saddr);
		copy_in6(conn->remote, &sk->__sk_common.skc_v6_daddr);
	}
}

/* A file refers to the socket: a child that has none waits in the accept queue. */
static __always_inline bool is_grafted(struct sock *sk)
{
	return sk->sk_socket != NULL;
}

#endif
