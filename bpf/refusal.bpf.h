/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connects that the kernel refuses before it sends a SYN: no route, no free port, not
 * permitted. The socket changes no state, so only what the call returns shows them. Loaded
 * only if failed connects are asked for. Runs after the call, without the socket lock.
 */
#ifndef TT_REFUSAL_BPF_H
#define TT_REFUSAL_BPF_H

/* A connect under way, from its entry; the arguments are those of the system call, where that is what is hooked. */
struct tt_connecting {
	__u64 since;
	__u64 address;
	__u32 fd;
	__u32 pad;
};

/* By thread. What a thread killed inside connect leaves behind is evicted. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct tt_connecting);
} connecting SEC(".maps");

/* The largest of sockaddr_in and sockaddr_in6, as far as it matters here. */
struct tt_sockaddr {
	__u16 family;
	__be16 port;
	__be32 ipv4;
	__u8 ipv6[16];
};

static __always_inline void on_connect_called(__u32 fd, __u64 address)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct tt_connecting call = {
		.since = bpf_ktime_get_ns(),
		.address = address,
		.fd = fd,
	};

	bpf_map_update_elem(&connecting, &tid, &call, BPF_ANY);
}

/* False if the address is of another family than the socket. */
static __always_inline bool set_destination(struct tt_conn *conn, const struct tt_sockaddr *to)
{
	if (to->family != conn->family)
		return false;
	conn->remote_port = __builtin_bswap16(to->port);
	if (conn->family == AF_INET)
		*(__be32 *)conn->remote = to->ipv4;
	else
		__builtin_memcpy(conn->remote, to->ipv6, sizeof(conn->remote));
	return true;
}

static __noinline void report_refusal(struct sock *sk, __u64 since, const struct tt_sockaddr *to,
				      int error)
{
	struct tt_conn conn = {}, *known;
	__u64 key = probed_key_of(sk);

	/* Its socket need not be followed, so that nobody has asked before whose it is. */
	if (!to || !is_wanted(current_task()))
		return;
	known = lookup_conn(key);
	conn.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	conn.netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	/*
	 * An attempt that got as far as the SYN has been reported: this one, or an earlier
	 * one without blocking, whose error this call only fetches.
	 */
	if (known && (known->t_closed > since || known->error == error))
		return;
	if (BPF_CORE_READ(sk, __sk_common.skc_state) != BPF_TCP_CLOSE ||
	    !follows(conn.family, conn.netns) || !set_destination(&conn, to))
		return;
	conn.t_closed = bpf_ktime_get_ns();
	if (known) {
		conn.cookie = known->cookie;
		conn.life = ++known->life;
	} else {
		conn.cookie = make_up_id(conn.t_closed);
	}
	conn.local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	conn.role = TT_ROLE_CLIENT;
	conn.source = TT_SOURCE_CONNECT;
	conn.error = error;
	read_process(current_task(), &conn.owner);
	emit_opened(&conn, TT_FAILED, conn.t_closed);
}

/* The system call is over. */
static __always_inline void on_connect_returned(long result)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct tt_connecting *call = bpf_map_lookup_elem(&connecting, &tid);
	struct tt_sockaddr to = {};
	struct sock *sk;

	if (!call)
		return;
	if (result < 0) {
		sk = tcp_sock_of_fd(call->fd);
		if (sk && !bpf_probe_read_user(&to, sizeof(to), (void *)call->address))
			report_refusal(sk, call->since, &to, -result);
	}
	bpf_map_delete_elem(&connecting, &tid);
}

static __always_inline void report_refused_socket(struct socket *socket, __u64 since, void *address,
						  int result)
{
	struct sock *sk = BPF_CORE_READ(socket, sk);
	struct tt_sockaddr to = {};

	if (sk)
		sk = tcp_part_of(sk);
	if (sk && !bpf_probe_read_kernel(&to, sizeof(to), address))
		report_refusal(sk, since, &to, -result);
}

/* The security modules have their say before TCP has. */
static __always_inline void on_connect_checked(struct socket *socket, void *address, int result)
{
	if (result < 0)
		report_refused_socket(socket, bpf_ktime_get_ns(), address, result);
}

/* TCP's part of the call is over; that of an MPTCP socket may contain its first subflow's, which has come before then. */
static __always_inline void on_stream_connected(struct socket *socket, void *address, int result)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct tt_connecting *call = bpf_map_lookup_elem(&connecting, &tid);

	if (!call)
		return;
	if (result < 0)
		report_refused_socket(socket, call->since, address, result);
	bpf_map_delete_elem(&connecting, &tid);
}

#endif
