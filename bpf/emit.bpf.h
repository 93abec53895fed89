/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a connection's state to a record in the ring. */
#ifndef TT_EMIT_BPF_H
#define TT_EMIT_BPF_H

/*
 * Waking the reader costs more than all the rest, so records are committed without
 * and a reader that said it is about to block is woken once. The commit is a full
 * barrier: either we see the reader parked or the reader sees our record.
 */
static __always_inline void wake_parked_reader(void)
{
	void *nudge;

	if (!tt_reader_parked)
		return;
	tt_reader_parked = 0;
	nudge = bpf_ringbuf_reserve(&events, 8, 0);
	if (nudge)
		bpf_ringbuf_discard(nudge, BPF_RB_FORCE_WAKEUP);
}

static __always_inline void fill_counters(struct tt_event *event, struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!tp)
		return;
	event->bytes_sent = tp->bytes_sent - tp->bytes_retrans;
	/* The FIN of the peer takes one sequence number. */
	event->bytes_received =
		tp->bytes_received - ((sk->__sk_common.skc_flags >> SOCK_DONE_BIT) & 1);
	event->segs_out = tp->segs_out;
	event->segs_in = tp->segs_in;
	event->retransmits = tp->total_retrans;
	event->srtt_us = tp->srtt_us >> 3;
	event->counted = 1;
}

static __always_inline void fill_event(struct tt_event *event, __u8 type,
				       const struct tt_conn *conn, __u64 time)
{
	event->time = time;
	event->conn = *conn;
	event->bytes_sent = 0;
	event->bytes_received = 0;
	event->segs_out = 0;
	event->segs_in = 0;
	event->retransmits = 0;
	event->srtt_us = 0;
	/* One store for type, counted and the padding. */
	*(__u64 *)&event->type = type;
}

/* Events without counters; they come from any kind of program. */
static __noinline void emit_opened(struct tt_conn *conn, __u8 type, __u64 time)
{
	struct tt_event *event;

	if (!conn || !selected(&conn->owner))
		return;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count(TT_RING_FULL);
		return;
	}
	fill_event(event, type, conn, time);
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	wake_parked_reader();
}

/* sk is NULL when the socket is gone and with it the counters. */
static __always_inline void emit_ended(struct tt_conn *conn, __u8 type, struct sock *sk)
{
	struct tt_event *event;

	if (!conn->closer_selected && !selected(&conn->owner))
		return;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count(TT_RING_FULL);
		return;
	}
	fill_event(event, type, conn, conn->t_closed);
	if (sk)
		fill_counters(event, sk);
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	wake_parked_reader();
}

#endif
