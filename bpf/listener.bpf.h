/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who listens on which port. BPF_F_CLONE socket storage would tell each child its very
 * listener, but the kernel then copies and frees it for every connection of the host:
 * more than all else that we do. This costs nothing until an accept was not seen.
 */
#ifndef TT_LISTENER_BPF_H
#define TT_LISTENER_BPF_H

static __always_inline __u64 listening_port(__u32 netns, __u16 port)
{
	return (__u64)netns << 16 | port;
}

/* inet_sport, since skc_num is 0 once the port was given back. */
static __always_inline __u64 port_of_listener(struct sock *sk)
{
	__be16 port = BPF_CORE_READ((struct inet_sock *)sk, inet_sport);

	return listening_port(BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum),
			      __builtin_bswap16(port));
}

static __always_inline void add_listener(struct task_struct *task, struct sock *sk)
{
	__u64 port = port_of_listener(sk);
	struct tt_listener *known = bpf_map_lookup_elem(&listeners, &port);
	struct tt_listener listener = {};

	if (known) {
		add_to(&known->sockets, 1);
		if (known->owner.pid != task_tgid(task))
			known->shared = 1;
		return;
	}
	read_process(task, &listener.owner);
	listener.sockets = 1;
	bpf_map_update_elem(&listeners, &port, &listener, BPF_NOEXIST);
}

static __always_inline void remove_listener(struct sock *sk)
{
	__u64 port = port_of_listener(sk);
	struct tt_listener *known = bpf_map_lookup_elem(&listeners, &port);

	if (!known)
		return;
	add_to(&known->sockets, -1);
	if (!known->sockets)
		bpf_map_delete_elem(&listeners, &port);
}

/* The role of a connection that was not seen to begin: of one to a port on which somebody listens, the server's. */
static __always_inline __u8 likely_role(const struct tt_conn *conn)
{
	__u64 port = listening_port(conn->netns, conn->local_port);

	return bpf_map_lookup_elem(&listeners, &port) ? TT_ROLE_SERVER : TT_ROLE_CLIENT;
}

/* NULL if nobody does, or if it could be one of several. */
static __always_inline struct tt_process *sole_listener(__u32 netns, __u16 port)
{
	__u64 key = listening_port(netns, port);
	struct tt_listener *known = bpf_map_lookup_elem(&listeners, &key);

	return known && !known->shared ? &known->owner : NULL;
}

#endif
