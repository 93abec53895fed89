/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What stays of connections while no hook is attached: with each socket that a process holds, what the last of its
 * connections was. So a connection that is open all the while keeps its id, owner and times, and one that the same socket
 * makes later does not get an id that was taken. The kernel frees it with the socket.
 */
#ifndef TT_MEMORY_BPF_H
#define TT_MEMORY_BPF_H

struct tt_memory {
	struct tt_conn conn;
	__u32 segs_out; /* a new connection of the socket begins to count anew */
	__u32 pad;
};

/* Made only if the reader attaches on demand. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct tt_memory);
} memories SEC(".maps");

static __always_inline struct tt_memory *memory_of(struct sock *sk)
{
	return tt_config.remembers ? bpf_sk_storage_get(&memories, sk, NULL, 0) : NULL;
}

static __always_inline bool is_same_address(const __u8 *a, const __u8 *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

/* Whether the connection that is remembered is the one that the socket has now. */
static __always_inline bool is_still(const struct tt_memory *memory, const struct tt_conn *now,
				     __u32 segs_out)
{
	const struct tt_conn *then = &memory->conn;

	return !then->closed && segs_out >= memory->segs_out &&
	       then->family == now->family && then->local_port == now->local_port &&
	       then->remote_port == now->remote_port &&
	       is_same_address(then->local, now->local) &&
	       is_same_address(then->remote, now->remote);
}

/* How often the socket had tried to connect before the connection that it has now. */
static __always_inline __u16 life_of(const struct tt_memory *memory, const struct tt_conn *now,
				     __u32 segs_out)
{
	if (!memory)
		return 0;
	return memory->conn.life + !is_still(memory, now, segs_out);
}

#endif
