/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The life of a connection, from the transitions of its socket.
 *
 * Each function stands for one transition and runs with the socket locked, so the
 * writers of an entry are serialised; only some hooks of accept (accept.bpf.h) are not.
 * tp_btf programs are skipped while they already run on the CPU, which happens to
 * softirq transitions that interrupt one in process context. So a function never
 * relies on the ones before it having run: it first makes up for what is missing.
 */
#ifndef TT_CONN_BPF_H
#define TT_CONN_BPF_H

/* In process context only. A kernel thread that drops the last reference closes for others. */
static __always_inline void capture_closer(struct tt_conn *conn)
{
	struct task_struct *task = current_task();

	if (conn->closer_pid || (task_flags(task) & PF_KTHREAD))
		return;
	conn->closer_pid = task_tgid(task);
	read_comm(task, conn->closer_comm);
	/* As in still_selected(). */
	if (filters_processes() && !tt_config.owns_maps && conn->closer_pid != conn->owner.pid) {
		struct tt_process closer = {};

		read_process(task, &closer);
		conn->closer_selected = selected(&closer);
	}
}

static __always_inline void report_closed(struct tt_conn *conn, struct sock *sk)
{
	conn->reported = 1;
	emit_ended(conn, TT_CLOSE, sk);
}

/*
 * The entry belongs to an earlier socket at the same address, whose end was missed
 * altogether. Report it with what is known and free the entry.
 */
static __noinline void retire(struct tt_conn *conn, __u64 key)
{
	if (!conn)
		return;
	if (conn->opened && !conn->reported) {
		if (!conn->t_closed)
			conn->t_closed = bpf_ktime_get_ns();
		report_closed(conn, NULL);
	}
	delete_conn(key);
}

/*
 * Whether the entry is this socket's. Slab addresses are used again at once, so the
 * cookie has to agree, or the peer's port where the accept hook made one up.
 */
static __always_inline bool belongs(struct tt_conn *conn, __u64 cookie, __be16 peer_port)
{
	if (conn->cookie & TT_MADE_UP_ID)
		return conn->remote_port == __builtin_bswap16(peer_port);
	return conn->cookie == cookie;
}

static __always_inline struct tt_place place_of_sock(struct sock *sk)
{
	return place_of(key_of(sk));
}

/* The connection of a socket, or NULL: then the table has nothing at its address. */
static __always_inline struct tt_conn *find_at(struct tt_place place, struct sock *sk)
{
	struct tt_conn *conn = lookup_at(place);

	if (!conn || belongs(conn, sk->__sk_common.skc_cookie.counter, sk->__sk_common.skc_dport))
		return conn;
	retire(conn, place.key);
	return NULL;
}

static __always_inline struct tt_conn *find_or_retire(struct sock *sk)
{
	return find_at(place_of_sock(sk), sk);
}

/* A socket gets its cookie when it is first followed: this one may have been. */
static __always_inline bool may_be_followed(struct sock *sk)
{
	return sk->__sk_common.skc_cookie.counter || tt_cookieless;
}

/* The connection of this socket, or NULL. */
static __always_inline struct tt_conn *find(struct sock *sk)
{
	return may_be_followed(sk) ? find_or_retire(sk) : NULL;
}

static __always_inline void report_opened(struct tt_conn *conn, __u64 time)
{
	conn->opened = 1;
	emit_opened(conn, conn->role == TT_ROLE_CLIENT ? TT_CONNECT : TT_ACCEPT, time);
}

/*
 * A later transition shows that the handshake completed although we did not see it. It
 * is reported as of the end if that is what shows it: not after the close. Where not
 * even the SYN was seen, it waits for its process to act.
 */
static __always_inline void heal_connect(struct tt_conn *conn, struct sock *sk, bool current_acts)
{
	if (conn->opened || conn->role != TT_ROLE_CLIENT)
		return;
	if (conn->source == TT_SOURCE_UNKNOWN) {
		if (!current_acts)
			return;
		read_process(current_task(), &conn->owner);
		conn->source = TT_SOURCE_CLOSER;
	}
	read_tuple(conn, sk);
	report_opened(conn, conn->t_closed ?: bpf_ktime_get_ns());
}

/*
 * The application closes a connection that no hook saw it accept. Only from its own
 * close or after it: in softirq the accept may still be on its way to our hook.
 */
static __always_inline void heal_accept(struct tt_conn *conn, bool current_closes)
{
	struct tt_process *listener;

	if (conn->opened || conn->role != TT_ROLE_SERVER)
		return;
	/* A TFO child has been accepted, and waited for the end of the handshake. */
	if (!conn->t_accepted) {
		listener = sole_listener(conn->netns, conn->local_port);
		if (listener) {
			conn->owner = *listener;
			conn->source = TT_SOURCE_LISTENER;
		} else if (current_closes) {
			read_process(current_task(), &conn->owner);
			conn->source = TT_SOURCE_CLOSER;
		}
	}
	report_opened(conn, conn->t_closed ?: bpf_ktime_get_ns());
}

/*
 * What the table has of the socket before it connects, if anything, makes room. How often it had tried to connect before; false
 * if that is what `again` is about.
 */
static __always_inline bool begin_life(struct tt_place place, __u64 *id, __u16 *life, bool again)
{
	struct tt_conn *old = lookup_at(place);

	if (!old)
		return true;
	/* Without cookies: this is the same socket, since no other was destroyed. */
	if (!tt_config.cookies)
		*id = old->cookie;
	if (old->cookie == *id) {
		if (again && !old->closed)
			return false;
		*life = old->life + 1;
	}
	retire(old, place.key);
	return true;
}

static __noinline void add_connecting(struct sock *sk, bool again)
{
	struct task_struct *task = current_task();
	struct tt_memory *memory;
	struct tt_place place;
	struct tt_entry entry;
	struct tt_conn spare, *conn;
	__u16 life = 0;
	__u64 id;

	id = make_id(sk);
	memory = memory_of(sk);
	if (memory)
		life = memory->conn.life + 1;
	place = place_of_sock(sk);
	if (!begin_life(place, &id, &life, again))
		return;
	conn = begin_conn(&entry, place, &spare);
	conn->family = sk->__sk_common.skc_family;
	conn->netns = netns_of(sk);
	conn->cookie = id;
	conn->life = life;
	conn->remote_port = __builtin_bswap16(sk->__sk_common.skc_dport);
	conn->t_syn = bpf_ktime_get_ns();
	conn->role = TT_ROLE_CLIENT;
	conn->source = TT_SOURCE_CONNECT;
	read_process(task, &conn->owner);
	/* The first of two programs has counted it already. */
	if (end_conn(&entry, &spare) && !again)
		count(TT_MAP_FULL);
}

/* CLOSE -> SYN_SENT, in the connecting process. The source port is not chosen yet. */
static __always_inline void on_syn_sent(struct sock *sk, bool again)
{
	if (!is_of_other_family(sk) && is_wanted(current_task()))
		add_connecting(sk, again);
}

/* As on_syn_sent(), of a socket that has changed its state: that may have gone unseen. */
static __always_inline void on_connecting(struct sock *sk)
{
	struct tt_conn *conn = find(sk);

	if (!conn || conn->closed)
		on_syn_sent(sk, true);
}

/* Returns the connection if it has an entry already: an accept has been faster. */
static __noinline struct tt_conn *add_passive(struct sock *sk)
{
	struct tt_conn spare, *conn;
	struct tt_place place;
	struct tt_entry entry;

	place = place_of_sock(sk);
	conn = find_at(place, sk);
	if (conn)
		return conn;
	conn = begin_conn(&entry, place, &spare);
	conn->netns = netns_of(sk);
	conn->cookie = make_id(sk);
	conn->t_established = bpf_ktime_get_ns();
	conn->role = TT_ROLE_SERVER;
	read_tuple(conn, sk);
	/* Without room the accept hook tries again, and counts. */
	return end_conn(&entry, &spare) == -EEXIST ? find_or_retire(sk) : NULL;
}

/* A connection whose beginning was not seen: it has no owner yet. `role` may be UNKNOWN. NULL if there is no room. */
static __noinline struct tt_conn *add_late(struct sock *sk, __u8 role, __u64 established)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct tt_conn conn = {}, *known;

	/* What the table has of an earlier socket at this address makes room. */
	find_or_retire(sk);
	conn.netns = netns_of(sk);
	conn.cookie = make_id(sk);
	conn.t_established = established;
	read_tuple(&conn, sk);
	conn.role = role ?: likely_role(&conn);
	if (tp)
		conn.life = life_of(memory_of(sk), &conn, tp->segs_out);
	insert_conn(key_of(sk), &conn);
	known = lookup_conn(key_of(sk));
	return known && known->cookie == conn.cookie ? known : NULL;
}

/*
 * A connection that should have been seen to begin: if it has no cookie, the kernel has skipped all programs for it until now,
 * because a task was preempted in each. If it is a process that ends it, that one is taken for its owner. Others, and what has a
 * cookie and found no room, are counted: then this returns NULL.
 */
static __always_inline struct tt_conn *add_untracked(struct sock *sk)
{
	struct tt_conn *conn = NULL;

	if (tt_config.skips && !may_be_followed(sk) && is_ended_by_process(sk))
		conn = add_late(sk, TT_ROLE_UNKNOWN, 0);
	if (!conn) {
		count(TT_UNTRACKED);
		return NULL;
	}
	heal_connect(conn, sk, true);
	heal_accept(conn, true);
	return conn;
}

static __always_inline void on_established(struct sock *sk, int from)
{
	struct tt_conn *conn = find(sk);

	if (!conn && is_candidate(sk) && !is_of_other_family(sk)) {
		/* One that did not connect is for somebody to accept. */
		if (from == BPF_TCP_SYN_RECV)
			conn = may_be_wanted(sk) ? add_passive(sk) : NULL;
		/* There, nearly every socket without an entry is of somebody else. Without room it is counted at its end. */
		else if (!tt_config.owns_maps)
			add_late(sk, TT_ROLE_CLIENT, bpf_ktime_get_ns());
	}
	if (!conn || conn->opened || conn->t_established)
		return;
	/* A client, or a TFO child that was accepted before the handshake was over. */
	if (tt_config.cookies)
		conn->cookie = bpf_get_socket_cookie(sk);
	conn->t_established = bpf_ktime_get_ns();
	read_tuple(conn, sk);
	if (conn->source != TT_SOURCE_UNKNOWN)
		report_opened(conn, conn->t_established);
}

/* -> FIN_WAIT1: this side closes first. -> LAST_ACK: it closes after the peer. */
static __always_inline void on_local_fin(struct sock *sk, int to, bool again)
{
	struct tt_conn *conn = find(sk);

	if (!conn && !again && is_untracked(sk))
		conn = add_untracked(sk);
	if (!conn)
		return;
	heal_connect(conn, sk, is_grafted(sk));
	if (to == BPF_TCP_FIN_WAIT1 && !conn->t_fin) {
		conn->t_fin = bpf_ktime_get_ns();
		conn->reason = TT_REASON_LOCAL;
	}
	if (is_grafted(sk)) {
		heal_accept(conn, true);
		capture_closer(conn);
	}
}

/* ESTABLISHED -> CLOSE_WAIT: the peer closes first. */
static __always_inline void on_remote_fin(struct sock *sk)
{
	struct tt_conn *conn = find(sk);

	if (!conn)
		return;
	heal_connect(conn, sk, false);
	if (!conn->t_fin) {
		conn->t_fin = bpf_ktime_get_ns();
		conn->reason = TT_REASON_REMOTE;
	}
}

/* Whose FIN was the first, as the last state before CLOSE has it. */
static __always_inline __u8 first_fin(int from)
{
	switch (from) {
	case BPF_TCP_FIN_WAIT1:
	case BPF_TCP_FIN_WAIT2:
	case BPF_TCP_CLOSING:
		return TT_REASON_LOCAL;
	case BPF_TCP_CLOSE_WAIT:
	case BPF_TCP_LAST_ACK:
		return TT_REASON_REMOTE;
	default:
		return TT_REASON_UNKNOWN;
	}
}

/* The RST, timeout or abort that ended it, unless it ended by FINs: then UNKNOWN. */
static __always_inline __u8 broken_by(struct sock *sk, int from, int error)
{
	bool local_fin_only = from == BPF_TCP_FIN_WAIT1 || from == BPF_TCP_FIN_WAIT2;

	switch (error) {
	case 0:
		if (from == BPF_TCP_ESTABLISHED || from == BPF_TCP_CLOSE_WAIT)
			return TT_REASON_RESET_LOCAL;
		/* Half closed and still held by a process: TIME_WAIT would need the peer's FIN. */
		if (local_fin_only && !has_flag(sk, SOCK_DONE_BIT) && !has_flag(sk, SOCK_DEAD_BIT))
			return TT_REASON_RESET_LOCAL;
		return TT_REASON_UNKNOWN;
	case ECONNRESET:
	case EPIPE:
		/* Data for a socket that was closed in full: the kernel resets both ends. */
		if (local_fin_only && (sk->sk_shutdown & RCV_SHUTDOWN))
			return TT_REASON_UNKNOWN;
		return TT_REASON_RESET_REMOTE;
	case ECONNREFUSED:
		return from == BPF_TCP_SYN_SENT ? TT_REASON_RESET_REMOTE : TT_REASON_TIMEOUT;
	case ETIMEDOUT:
	case EHOSTUNREACH:
	case ENETUNREACH:
		return TT_REASON_TIMEOUT;
	case ECONNABORTED:
		return TT_REASON_ABORT;
	default:
		return TT_REASON_UNKNOWN;
	}
}

/*
 * An error is about to end the connection: from a hook that has the error before the kernel sets it. Later its
 * process may read, and so clear, it on another CPU before the transition to CLOSE is seen, or instead of it.
 */
static __always_inline void on_fatal_error(struct sock *sk, int error)
{
	struct tt_conn *conn = find(sk);
	__u8 broken;

	if (!conn || conn->closed)
		return;
	conn->error = error;
	broken = broken_by(sk, sk->__sk_common.skc_state, error);
	if (broken != TT_REASON_UNKNOWN)
		conn->reason = broken;
}

/* A RST arrives. */
static __always_inline void on_reset(struct sock *sk)
{
	int state = sk->__sk_common.skc_state;

	on_fatal_error(sk, state == BPF_TCP_SYN_SENT	? ECONNREFUSED
			   : state == BPF_TCP_CLOSE_WAIT ? EPIPE
							 : ECONNRESET);
}

/*
 * The kernel announces an error to the process, fatal or not. The last one before CLOSE was fatal, if one was. It also
 * does so when a socket was disconnected, which is not its connection's any more.
 */
static __always_inline void on_error_announced(struct sock *sk)
{
	int error = read_once(sk->sk_err);
	struct tt_conn *conn;

	if (sk->__sk_common.skc_state == BPF_TCP_CLOSE || !error)
		return;
	conn = find(sk);
	if (conn)
		conn->noticed = error;
}

static __always_inline void on_failed(struct tt_conn *conn, struct sock *sk)
{
	conn->reported = 1;
	if (!tt_config.failed)
		return;
	read_tuple(conn, sk);
	emit_ended(conn, TT_FAILED, NULL);
}

/* -> CLOSE. The error is already set; the counters are final, the tuple may go next. */
static __always_inline void on_closed(struct sock *sk, int from, bool again)
{
	struct tt_place place;
	struct tt_conn *conn = NULL;
	bool current_acts, lost;
	__u8 broken;
	int error;

	if (may_be_followed(sk)) {
		place = place_of_sock(sk);
		conn = find_at(place, sk);
	}
	if (!conn && !again && (from == BPF_TCP_ESTABLISHED || from == BPF_TCP_CLOSE_WAIT) &&
	    is_untracked(sk)) {
		place = place_of_sock(sk);
		conn = add_untracked(sk);
	}
	if (!conn || conn->closed)
		return;
	conn->closed = 1;
	conn->t_closed = bpf_ktime_get_ns();
	/* The first FIN went unseen. */
	if (conn->reason == TT_REASON_UNKNOWN)
		conn->reason = first_fin(from);
	error = read_once(sk->sk_err);
	if (error)
		conn->error = error;
	lost = !conn->error && has_lost_error(sk, from, conn->noticed);
	if (lost)
		set_lost_error(conn, sk, is_given_up(sk));
	broken = lost && !conn->error ? TT_REASON_UNKNOWN : broken_by(sk, from, conn->error);
	if (broken != TT_REASON_UNKNOWN)
		conn->reason = broken;
	/*
	 * Without an error it was a system call that ended it, which holds the lock: the kernel ends some itself, in
	 * softirq, where any process is the current one. After FINs the closer is known.
	 */
	current_acts = is_grafted(sk) && is_locked(sk) && !lost &&
		       (broken == TT_REASON_RESET_LOCAL || broken == TT_REASON_ABORT ||
			(from == BPF_TCP_SYN_SENT && !conn->error));
	if (current_acts)
		capture_closer(conn);

	if (conn->role == TT_ROLE_CLIENT && !conn->opened &&
	    (from == BPF_TCP_SYN_SENT || from == BPF_TCP_SYN_RECV)) {
		if (!conn->error && !lost)
			conn->reason = TT_REASON_LOCAL;
		on_failed(conn, sk);
	} else {
		heal_connect(conn, sk, current_acts);
		if (conn->opened)
			report_closed(conn, sk);
		else
			/* Reset in the accept queue, it may be accepted yet; or without an owner. */
			conn->grafted = is_grafted(sk);
	}
	/* A socket that a process still holds may connect again: tcp_destroy_sock ends it. */
	if (conn->reported && has_flag(sk, SOCK_DEAD_BIT))
		delete_at(place);
}

/* The socket goes away: report what was missed until now. */
static __always_inline void on_destroyed(struct sock *sk)
{
	struct tt_conn *conn = NULL;
	struct tt_place place;

	if (may_be_followed(sk)) {
		place = place_of_sock(sk);
		conn = find_at(place, sk);
	} else if (tt_config.skips && is_unseen(sk)) {
		place = place_of_sock(sk);
		conn = add_untracked(sk);
		/* If the peer ended it, the process only let go of it. */
		if (conn && !read_once(sk->sk_err))
			capture_closer(conn);
	}
	if (!conn)
		return;
	if (!conn->closed) {
		struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
		int error = read_once(sk->sk_err);

		conn->t_closed = bpf_ktime_get_ns();
		if (!conn->error && error) {
			conn->error = error;
			conn->reason = broken_by(sk, BPF_TCP_ESTABLISHED, conn->error);
		}
		/* The peer acknowledged our SYN: it was established. */
		if (tp && tp->bytes_acked)
			heal_connect(conn, sk, false);
		if (conn->opened && !conn->error && conn->reason == TT_REASON_UNKNOWN &&
		    has_given_up_sending(sk)) {
			set_lost_error(conn, sk, true);
			conn->reason = broken_by(sk, BPF_TCP_ESTABLISHED, conn->error);
		}
		if (conn->role == TT_ROLE_CLIENT && !conn->opened && !conn->t_established) {
			if (!conn->error) {
				set_lost_error(conn, sk,
					       has_given_up_connecting(sk, conn->t_closed - conn->t_syn));
				conn->reason = broken_by(sk, BPF_TCP_SYN_SENT, conn->error);
			}
			on_failed(conn, sk);
		}
	}
	/* Whose it was is not known any more; that it was is. */
	if (conn->role == TT_ROLE_CLIENT && !conn->opened && conn->t_established)
		report_opened(conn, conn->t_closed);
	if (conn->grafted)
		heal_accept(conn, false);
	if (conn->opened && !conn->reported)
		report_closed(conn, sk);
	delete_at(place);
}

#endif
