/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who accepted. Runs in the accepting process: with the socket locked where a TCP socket gets its file, and elsewhere
 * without the lock and with untrusted pointers, where every read of the socket is a probe read.
 */
#ifndef TT_ACCEPT_BPF_H
#define TT_ACCEPT_BPF_H

/* The file behind a descriptor of the current process, or NULL. */
static __always_inline struct file *file_of_fd(__u32 fd)
{
	struct task_struct *task = current_task();
	struct file *file = NULL, **files;
	struct fdtable *table;
	__u32 room;

	if (task_is_trusted()) {
		table = task->files->fdt;
		room = table->max_fds;
		files = table->fd;
	} else {
		table = BPF_CORE_READ(task, files, fdt);
		room = BPF_CORE_READ(table, max_fds);
		files = BPF_CORE_READ(table, fd);
	}
	if (fd < room)
		bpf_probe_read_kernel(&file, sizeof(file), files + fd);
	return file;
}

/* What a socket's file refers to, and garbage for other files. */
static __always_inline struct sock *sock_of(struct file *file)
{
	struct socket *socket = BPF_CORE_READ(file, private_data);

	return BPF_CORE_READ(socket, sk);
}

static __always_inline bool is_socket(struct file *file)
{
	return (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) == S_IFSOCK;
}

/* The TCP socket of a file, or NULL. */
static __always_inline struct sock *tcp_sock_of(struct file *file)
{
	struct sock *sk;

	if (!is_socket(file))
		return NULL;
	sk = sock_of(file);
	return sk ? tcp_part_of(sk) : NULL;
}

static __always_inline struct sock *tcp_sock_of_fd(__u32 fd)
{
	struct file *file = file_of_fd(fd);

	return file ? tcp_sock_of(file) : NULL;
}

/* Namespace and tuple of a socket behind an untrusted pointer. */
static __always_inline void probe_tuple(struct tt_conn *conn, struct sock *sk)
{
	conn->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	conn->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	conn->remote_port = __builtin_bswap16(BPF_CORE_READ(sk, __sk_common.skc_dport));
	conn->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	if (conn->family == AF_INET) {
		BPF_CORE_READ_INTO((__be32 *)conn->local, sk, __sk_common.skc_rcv_saddr);
		BPF_CORE_READ_INTO((__be32 *)conn->remote, sk, __sk_common.skc_daddr);
	} else if (bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		BPF_CORE_READ_INTO((struct in6_addr *)conn->local, sk,
				   __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO((struct in6_addr *)conn->remote, sk,
				   __sk_common.skc_v6_daddr);
	}
}

/* The same with its identity. */
static __always_inline void probe_conn(struct tt_conn *conn, struct sock *sk)
{
	probe_tuple(conn, sk);
	/* A cookie is made on demand, which is not possible here. */
	conn->cookie = tt_config.own_ids ? 0 : BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	if (!conn->cookie) {
		tt_cookieless = 1;
		conn->cookie = make_up_id(bpf_ktime_get_ns());
	}
}

/* The entry of this socket's address, whosever it is. */
static __always_inline struct tt_conn *conn_of(struct sock *sk)
{
	__u64 key = probed_key_of(sk);

	return lookup_conn(key);
}

static __always_inline void set_accepted(struct tt_conn *conn)
{
	/* Another hook may have seen this accept, and a TFO child wait for its handshake. */
	if (conn->opened || conn->t_accepted || conn->role != TT_ROLE_SERVER)
		return;
	conn->t_accepted = bpf_ktime_get_ns();
	conn->source = TT_SOURCE_ACCEPT;
	read_process(current_task(), &conn->owner);
	/* In this order, so that the end is never in the ring before the accept. */
	emit_opened(conn, TT_ACCEPT, conn->t_accepted);
	conn->opened = 1;
}

/*
 * An accepted socket without state: established before tracing or while our program
 * was being skipped, or a child whose handshake is not over (TFO, or the accept was
 * faster than the softirq that completes it).
 */
static __noinline void adopt_accepted(struct sock *sk)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);
	struct tt_conn conn = {}, *other;

	if (tt_paused || state == BPF_TCP_LISTEN)
		return;
	/* It was reset before it was accepted, and that was reported; where nothing is kept of others, it was not. */
	if (state == BPF_TCP_CLOSE && !tt_config.owns_maps)
		return;
	probe_conn(&conn, sk);
	if (!follows(conn.family, conn.netns))
		return;
	conn.t_accepted = bpf_ktime_get_ns();
	conn.role = TT_ROLE_SERVER;
	conn.source = TT_SOURCE_ACCEPT;
	read_process(current_task(), &conn.owner);
	conn.opened = state != BPF_TCP_SYN_RECV;
	switch (insert_conn(probed_key_of(sk), &conn)) {
	case 0:
		if (conn.opened)
			emit_opened(&conn, TT_ACCEPT, conn.t_accepted);
		break;
	case -EEXIST:
		/* The handshake has completed meanwhile. */
		other = conn_of(sk);
		if (other)
			set_accepted(other);
		break;
	default:
		count(TT_MAP_FULL);
	}
}

/* The process that accepts is not selected: nobody waits for what its listener has let expect. */
static __always_inline void drop_accepted(const struct tt_conn *conn, __u64 key)
{
	if (!conn->opened && !conn->t_accepted && conn->role == TT_ROLE_SERVER)
		delete_conn(key);
}

/* adopt: whether the caller is sure that the socket has just been accepted. */
static __always_inline void on_accepted(struct tt_conn *conn, struct sock *sk, bool adopt)
{
	__u64 cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter), key = probed_key_of(sk);
	bool wanted = is_wanted(current_task());

	if (belongs(conn, cookie, BPF_CORE_READ(sk, __sk_common.skc_dport))) {
		if (wanted)
			set_accepted(conn);
		else
			drop_accepted(conn, key);
	} else if (adopt) {
		retire(conn, key);
		if (wanted)
			adopt_accepted(sk);
	}
}

/* The socket that is accepted gets its file. Of an MPTCP socket the first subflow counts, which is no trusted pointer. */
static __always_inline void on_grafted(struct sock *sk)
{
	struct tt_conn *conn;

	if (is_tcp(sk)) {
		bool wanted = is_wanted(current_task());

		conn = wanted ? find_or_retire(sk) : find(sk);
		if (conn && wanted)
			set_accepted(conn);
		else if (conn)
			drop_accepted(conn, key_of(sk));
		else if (wanted)
			adopt_accepted(sk);
		return;
	}
	sk = tcp_part_of(sk);
	if (!sk)
		return;
	conn = conn_of(sk);
	if (conn)
		on_accepted(conn, sk, true);
	else if (is_wanted(current_task()))
		adopt_accepted(sk);
}

/* As follows(), before it is known that this is a socket at all: garbage is not followed. */
static __always_inline bool follows_probed(struct sock *sk)
{
	if (!tt_config.family && !tt_config.netns)
		return true;
	return follows(BPF_CORE_READ(sk, __sk_common.skc_family),
		       BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum));
}

/*
 * For callers who have a descriptor only. That our state knows the address proves that
 * it is a socket's, so the usual case needs no other check of the file.
 */
static __always_inline void on_accepted_fd(__u32 fd, bool adopt)
{
	struct file *file = file_of_fd(fd);
	struct tt_conn *conn;
	struct sock *sk;

	if (!file)
		return;
	sk = sock_of(file);
	conn = conn_of(sk);
	if (!conn) {
		if (!follows_probed(sk))
			return;
		sk = tcp_sock_of(file);
		if (!sk)
			return;
		conn = conn_of(sk);
	}
	if (conn)
		on_accepted(conn, sk, adopt);
	else if (adopt && is_wanted(current_task()))
		adopt_accepted(sk);
}

#endif
