/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The errors that were lost. The kernel sets a socket's error, and its process clears it by reading it: with
 * SO_ERROR on another CPU even before the hook on the transition to CLOSE has run. Where no other hook got the
 * error (conn.bpf.h), what stays of the socket shows that there was one, and of timeouts also which.
 */
#ifndef TT_ERROR_BPF_H
#define TT_ERROR_BPF_H

/* A process holds the socket's lock: a system call of its, or what had to wait for the end of one. */
static __always_inline bool is_locked(struct sock *sk)
{
	return sk->sk_lock.owned;
}

static __always_inline bool is_subflow(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	return tp && bpf_core_field_exists(tp->is_mptcp) && tp->is_mptcp;
}

/*
 * On the transition to CLOSE: a timer has given up. The kernel marks a timer as not pending before that acts. A process
 * that closes while something is unanswered leaves it pending until after the transition; not so the timer of keepalive,
 * which never acts on a locked socket. A connect that fails at once has sent nothing, though its socket may remember
 * retransmissions of an earlier attempt.
 */
static __always_inline bool is_given_up(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct inet_connection_sock *icsk;

	if (!tp || !tp->segs_out || tp->inet_conn.icsk_pending)
		return false;
	icsk = &tp->inet_conn;
	if (!is_locked(sk) || icsk->icsk_retransmits)
		return true;
	/* Of probes into a closed window, answered or not; keepalive does not set it. */
	return bpf_core_field_exists(icsk->icsk_probes_tstamp) && icsk->icsk_probes_tstamp;
}

/* Reads a setting that is of another size before 5.13. */
#define read_setting(to, from) \
	bpf_probe_read_kernel(&(to), bpf_core_field_size(from), &(from))

/* After the transition: as many SYNs went unanswered, or for as long, as may. */
static __always_inline bool has_given_up_connecting(struct sock *sk, __u64 elapsed)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct net *net = sk->__sk_common.skc_net.net;
	__u32 retries = 0, linear = 0;
	__u64 limit;

	if (!tp || !tp->inet_conn.icsk_retransmits)
		return false;
	limit = tp->inet_conn.icsk_user_timeout * 1000000ULL;
	if (limit && elapsed >= limit)
		return true;
	if (tp->inet_conn.icsk_syn_retries)
		retries = tp->inet_conn.icsk_syn_retries;
	else
		read_setting(retries, net->ipv4.sysctl_tcp_syn_retries);
	if (bpf_core_field_exists(net->ipv4.sysctl_tcp_syn_linear_timeouts))
		read_setting(linear, net->ipv4.sysctl_tcp_syn_linear_timeouts);
	return tp->inet_conn.icsk_retransmits >= retries + linear;
}

/*
 * After the transition, if no hook saw it: what an open connection has sent, or its probes of a closed window, went
 * unanswered for as long, or as often, as may. A process that resets it by linger 0 leaves ECONNRESET, and nothing of
 * these.
 */
static __always_inline bool has_given_up_sending(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct net *net = sk->__sk_common.skc_net.net;
	struct inet_connection_sock *icsk;
	__u32 retries = 0;

	if (!tp)
		return false;
	icsk = &tp->inet_conn;
	if (icsk->icsk_user_timeout &&
	    (icsk->icsk_retransmits || icsk->icsk_probes_out ||
	     (bpf_core_field_exists(icsk->icsk_probes_tstamp) && icsk->icsk_probes_tstamp)))
		return true;
	read_setting(retries, net->ipv4.sysctl_tcp_retries2);
	return icsk->icsk_retransmits >= retries || icsk->icsk_probes_out >= retries;
}

/*
 * On the transition to CLOSE without an error: whether there was one. A process ends an open connection or a connect
 * only by a system call, which holds the lock; FINs end others without any. MPTCP ends its subflows as it likes.
 * ECONNABORTED is announced only by whoever destroys a socket from outside.
 */
static __always_inline bool has_lost_error(struct sock *sk, int from, __u16 noticed)
{
	bool is_open = from == BPF_TCP_SYN_SENT || from == BPF_TCP_ESTABLISHED ||
		       from == BPF_TCP_CLOSE_WAIT || from == BPF_TCP_FIN_WAIT1;

	if (!is_grafted(sk) || !is_open || is_subflow(sk))
		return false;
	return noticed == ECONNABORTED || !is_locked(sk) || is_given_up(sk);
}

/* What was announced, or what a timer sets. Of other errors, which ICMP brings, the number stays unknown. */
static __always_inline void set_lost_error(struct tt_conn *conn, struct sock *sk, bool timed_out)
{
	if (conn->noticed) {
		conn->error = conn->noticed;
	} else if (timed_out) {
		int soft = read_once(sk->sk_err_soft);

		conn->error = soft ?: ETIMEDOUT;
		conn->error_inferred = 1;
	}
}

#endif
