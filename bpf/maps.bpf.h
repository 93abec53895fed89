/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* All state, and the one place where loss is counted. */
#ifndef TT_MAPS_BPF_H
#define TT_MAPS_BPF_H

const volatile struct tt_config tt_config = {};

/*
 * The reader sets this before it blocks; the next event clears it and wakes the
 * reader. While it is 0 the reader comes by on a timer and nobody wakes it.
 */
volatile __u32 tt_reader_parked = 0;

/* Not all hooks are attached: an accept alone makes no entry, whose end might go unseen. The reader says so. */
volatile __u32 tt_paused = 1;

/* Names the ABI in BTF, so that the generated skeleton has it. Never written. */
struct tt_abi {
	struct tt_event event;
	struct tt_set set;
	enum tt_type type;
	enum tt_role role;
	enum tt_source source;
	enum tt_reason reason;
	enum tt_counter counter;
	struct tt_generation generation;
	struct tt_made made;
	struct tt_cgroup cgroup;
	enum tt_cgroup_change change;
} *tt_abi = NULL;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} events SEC(".maps");

/* Who listens on a port, by netns << 16 | port: looked up only if an accept was not seen. */
struct tt_listener {
	struct tt_process owner;
	__u32 sockets; /* SO_REUSEPORT, several addresses, IPv4 and IPv6 */
	__u32 shared;  /* by several processes: the port does not tell whose it is */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct tt_listener);
} listeners SEC(".maps");

/*
 * Each holds one map of the user's, whose values are never read. By this indirection
 * the map may have any name, any size and values of any size. Without the filter the
 * map is not made.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} cgroupmap SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} mntnsmap SEC(".maps");

/*
 * Where others edit the filter maps: the parent of each cgroup that has owned a
 * connection, so that events in softirq can be matched against a parent. A cgroup never
 * changes its parent and its id is not used again, so an entry cannot become wrong.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, __u64);
} cgroup_parents SEC(".maps");

#define TT_VERDICTS 8192 /* a power of two */

/*
 * Whether processes of a cgroup and a mount namespace pass the filter, where nobody else edits its maps: in one word, which is
 * read and written at once, both, the generation of the maps and the verdict. Others may take the place. Before the generation
 * comes to a number for the second time in its bits, the reader empties this.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TT_VERDICTS);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");

/* In a map of its own, which the reader writes. Unless it says otherwise, all cgroups are decided. */
volatile struct tt_generation tt_generation SEC(".data.generation") = {.decided = -1};

/* In a map of its own as well, which the reader reads. The kernel makes one cgroup at a time, so that it has one writer at a time. */
volatile struct tt_made tt_made SEC(".data.made") = {};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TT_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* The snapshot's: listening sockets that it has met, which several processes may hold. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u8);
} seen_listeners SEC(".maps");

/* The compiler keeps the order of what is written before and after, as the processor does. */
#define keep_order() asm volatile("" ::: "memory")

/*
 * An atomic addition, by the instruction that all kernels have. Newer compilers take it only if no order is asked for; else
 * another one, which also returns what was there before, and which kernels have from 5.12 on.
 */
#define add_to(pointer, number)                                                                    \
	do {                                                                                       \
		keep_order();                                                                      \
		(void)__atomic_fetch_add(pointer, number, __ATOMIC_RELAXED);                       \
		keep_order();                                                                      \
	} while (0)

/* Atomic: softirq may interrupt the addition on the same CPU. */
static __always_inline void count(__u32 what)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &what);

	if (n)
		add_to(n, 1);
}

#endif
