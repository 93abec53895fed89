/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Sockets that were there before us, in every network namespace, with the first
 * process that holds them. Runs after the tracing programs are attached, in two
 * passes: the listeners tell which of the connections were accepted.
 */
#ifndef TT_SNAPSHOT_BPF_H
#define TT_SNAPSHOT_BPF_H

/* The iterator holds the file, so the socket cannot be destroyed meanwhile. */
static __always_inline struct sock *sock_of_file(struct file *file)
{
	struct socket *socket;

	if (!file)
		return NULL;
	/* Not before 5.11; before 5.12 nothing needs more than the address. */
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_sock_from_file)) {
		socket = bpf_sock_from_file(file);
		return socket ? socket->sk : NULL;
	}
	return is_socket(file) ? sock_of(file) : NULL;
}

static __always_inline void seed_listener(struct task_struct *task, struct sock *sk)
{
	__u64 key = (__u64)sk;
	__u8 seen = 1;

	if (BPF_CORE_READ(sk, __sk_common.skc_state) == BPF_TCP_LISTEN &&
	    (is_stream_of(sk, IPPROTO_TCP) || is_stream_of(sk, IPPROTO_MPTCP)) &&
	    !bpf_map_update_elem(&seen_listeners, &key, &seen, BPF_NOEXIST))
		add_listener(task, sk);
}

/*
 * The role of an open connection, by what has been acknowledged and is on its way: a SYN is among it only if this side sent one,
 * since the kernel makes the socket of an accepted connection after that. UNKNOWN where that cannot be said: while a process holds
 * the lock, bytes may have been counted that have no sequence number yet, as those that this host itself has dropped.
 */
static __always_inline __u8 role_by_counts(struct sock *sk, __u8 state)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	__u64 acked = BPF_CORE_READ(tp, bytes_acked);
	__u32 beyond = BPF_CORE_READ(tp, snd_nxt) - BPF_CORE_READ(tp, snd_una);
	__u64 payload = BPF_CORE_READ(tp, bytes_sent) - BPF_CORE_READ(tp, bytes_retrans);
	__u64 flags = acked + beyond - payload;

	if (BPF_CORE_READ(sk, sk_lock.owned))
		return TT_ROLE_UNKNOWN;
	if (state == BPF_TCP_FIN_WAIT2)
		flags--;
	else if (state != BPF_TCP_ESTABLISHED && state != BPF_TCP_CLOSE_WAIT)
		return TT_ROLE_UNKNOWN;
	return flags == 0 ? TT_ROLE_SERVER : flags == 1 ? TT_ROLE_CLIENT : TT_ROLE_UNKNOWN;
}

/* A client whose SYN was sent before the hooks were there to see it. */
static __always_inline bool lacks_owner(const struct tt_conn *conn)
{
	return conn->role == TT_ROLE_CLIENT && conn->source == TT_SOURCE_UNKNOWN;
}

/*
 * The rest of a connection whose tuple and cookie are known; false if it is not to be kept. `memory` is what its socket
 * remembers, or NULL.
 */
static __always_inline bool seed(struct task_struct *task, struct sock *sk, struct tt_conn *conn,
				 const struct tt_memory *memory)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);
	__u64 key = probed_key_of(sk);
	__u32 segs_out = BPF_CORE_READ((struct tcp_sock *)sk, segs_out);
	struct tt_conn *known;

	if (state == BPF_TCP_CLOSE || state == BPF_TCP_LISTEN || state == BPF_TCP_SYN_RECV ||
	    !follows(conn->family, conn->netns))
		return false;
	if (memory && is_still(memory, conn, segs_out))
		*conn = memory->conn;
	else if (memory)
		conn->life = memory->conn.life + 1;
	if (conn->source != TT_SOURCE_UNKNOWN) {
		/* Where the owner is not known to be selected, who holds the socket may be. */
		if (tt_config.owns_maps &&
		    verdict_on_process(&conn->owner, NULL) != TT_SELECTED && !is_chosen(task))
			return false;
	} else {
		if (!is_chosen(task))
			return false;
		read_process(task, &conn->owner);
		if (state == BPF_TCP_SYN_SENT) {
			conn->role = TT_ROLE_CLIENT;
			conn->source = TT_SOURCE_CONNECT;
		} else {
			/* The port may have another listener by now, or none. */
			if (!conn->role)
				conn->role = role_by_counts(sk, state) ?: likely_role(conn);
			conn->source = TT_SOURCE_SNAPSHOT;
		}
	}
	/* Else it is not open yet: the connect will be reported when it is. */
	if (state != BPF_TCP_SYN_SENT) {
		conn->opened = 1;
		if (conn->reason == TT_REASON_UNKNOWN) {
			if (state == BPF_TCP_CLOSE_WAIT || state == BPF_TCP_LAST_ACK)
				conn->reason = TT_REASON_REMOTE;
			else if (state != BPF_TCP_ESTABLISHED)
				conn->reason = TT_REASON_LOCAL;
		}
	}
	switch (insert_conn(key, conn)) {
	case 0:
		break;
	case -EEXIST:
		known = lookup_conn(key);
		if (!known)
			return false;
		/* An earlier one of this socket, of which nobody has asked for the present one until now. */
		if (known->closed && known->cookie == conn->cookie)
			conn->life = known->life + 1;
		else if (!lacks_owner(known))
			return false;
		*known = *conn;
		break;
	default:
		count(TT_MAP_FULL);
		return false;
	}
	/* It may have been reset before the entry was there for the hook to find: then its socket's end reports that. */
	if (BPF_CORE_READ(sk, __sk_common.skc_state) == BPF_TCP_CLOSE)
		return false;
	return tt_config.list_existing && conn->opened && selected(&conn->owner);
}

/* By probe reads: of an MPTCP socket the first subflow counts, which is no trusted pointer. */
static __always_inline void seed_connection(struct task_struct *task, struct sock *sk,
					    struct seq_file *out)
{
	struct tt_memory *memory = NULL;
	struct tt_event event = {};

	bool has_cookie = tt_config.cookies && is_stream_of(sk, IPPROTO_TCP);

	if (has_cookie)
		memory = memory_of(sk);
	/* Sockets that nobody asks about get no id: those without a cookie are left early. */
	if (!memory && !is_chosen(task))
		return;
	/* Makes the cookie, to be found below. */
	if (has_cookie)
		bpf_get_socket_cookie(sk);
	sk = tcp_part_of(sk);
	if (!sk)
		return;
	probe_conn(&event.conn, sk);
	if (!seed(task, sk, &event.conn, memory))
		return;
	read_counters(&event, sk, (struct tcp_sock *)sk, BPF_CORE_READ);
	event.time = bpf_ktime_get_ns();
	event.type = TT_EXISTING;
	bpf_seq_write(out, &event, sizeof(event));
}

/* The programs are detached: what is known of this socket stays with it. */
static __always_inline void remember(struct sock *sk)
{
	struct tt_memory *memory;
	struct tt_conn *conn;
	__u64 cookie;

	if (!tt_config.remembers || !is_stream_of(sk, IPPROTO_TCP))
		return;
	conn = conn_of(sk);
	cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	if (!conn || !belongs(conn, cookie, BPF_CORE_READ(sk, __sk_common.skc_dport)))
		return;
	/* Without memory for it the connection is another one later, with the same id. */
	memory = bpf_sk_storage_get(&memories, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!memory)
		return;
	memory->conn = *conn;
	/* That of a connect under way is not complete in the entry. An open socket may have another connection by now. */
	if (!conn->closed && !conn->opened)
		probe_tuple(&memory->conn, sk);
	memory->segs_out = BPF_CORE_READ((struct tcp_sock *)sk, segs_out);
}

#endif
