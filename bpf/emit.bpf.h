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
	nudge = bpf_ringbuf_reserve(&events, 8, 0);
	/* Without room for it, the next event tries again. */
	if (!nudge)
		return;
	tt_reader_parked = 0;
	bpf_ringbuf_discard(nudge, BPF_RB_FORCE_WAKEUP);
}

/*
 * The counters of an event, each read by read(pointer, field): typed pointers are read directly, others by probe reads.
 * The FIN of the peer takes one sequence number.
 */
#define read_counters(event, sk, tp, read)                                                         \
	do {                                                                                       \
		(event)->bytes_sent = read(tp, bytes_sent) - read(tp, bytes_retrans);              \
		(event)->bytes_received = read(tp, bytes_received) -                               \
					  (read(sk, __sk_common.skc_flags) >> SOCK_DONE_BIT & 1);  \
		(event)->segs_out = read(tp, segs_out);                                            \
		(event)->segs_in = read(tp, segs_in);                                              \
		(event)->retransmits = read(tp, total_retrans);                                    \
		(event)->srtt_us = read(tp, srtt_us) >> 3;                                         \
		(event)->counted = 1;                                                              \
	} while (0)
#define read_directly(pointer, field) ((pointer)->field)

static __always_inline void fill_counters(struct tt_event *event, struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (tp)
		read_counters(event, sk, tp, read_directly);
}

/* A record with all of it initialised and no counters, or NULL: then it is counted as lost. */
static __always_inline struct tt_event *begin_event(__u8 type, const struct tt_conn *conn,
						    __u64 time)
{
	struct tt_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		count(TT_RING_FULL);
		return NULL;
	}
	event->time = time;
	event->conn = *conn;
	event->bytes_sent = 0;
	event->bytes_received = 0;
	event->segs_out = 0;
	event->segs_in = 0;
	event->retransmits = 0;
	event->srtt_us = 0;
	/* One store for type, counted and the padding: the end of the record. */
	_Static_assert(__builtin_offsetof(struct tt_event, type) + sizeof(__u64) == sizeof(*event),
		       "a field lies behind the padding");
	*(__u64 *)&event->type = type;
	return event;
}

static __always_inline void submit_event(struct tt_event *event)
{
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	wake_parked_reader();
}

/* Events without counters; they come from any kind of program. */
static __noinline void emit_opened(struct tt_conn *conn, __u8 type, __u64 time)
{
	struct tt_event *event;

	if (!conn || !still_selected(&conn->owner))
		return;
	event = begin_event(type, conn, time);
	if (event)
		submit_event(event);
}

/* sk is NULL when the socket is gone and with it the counters. */
static __always_inline void emit_ended(struct tt_conn *conn, __u8 type, struct sock *sk)
{
	struct tt_event *event;

	if (!conn->closer_selected && !still_selected(&conn->owner))
		return;
	event = begin_event(type, conn, conn->t_closed);
	if (!event)
		return;
	if (sk)
		fill_counters(event, sk);
	submit_event(event);
}

#endif
