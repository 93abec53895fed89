/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The connections that are followed, by where in memory their socket is.
 *
 * In an array of sets of slots, all of which is there from the start: a hash map's look-ups, inserts and deletes cost more
 * than all else that a connection takes. What finds its set full goes to a hash map, and the set counts it. A table that is
 * too small for sets is the hash map alone.
 *
 * A slot is its taker's whose addition to the claims makes one. Processors agree on the order of additions to one address,
 * so at most one of several takers sees that; all may back off, and go on to the next slot. That others see what is written
 * in the order in which it is written takes x86, or instructions that older kernels do not know: elsewhere the table is the
 * hash map alone.
 */
#ifndef TT_TABLE_BPF_H
#define TT_TABLE_BPF_H

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tt_set);
} sets SEC(".maps");

/*
 * Preallocated: an insert cannot fail for want of memory, only for want of a free entry, and that is counted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct tt_conn);
} conns SEC(".maps");

/* The address that keys are relative to, as a number. */
__u64 tt_base = 0;

/*
 * The key of a socket behind a pointer that the verifier trusts. With such an address it forbids all arithmetic but to subtract
 * another one; what is left is a number.
 */
static __always_inline __u64 key_of(struct sock *sk)
{
	return (__u64)sk - (__u64)&tt_config;
}

/* The same of any pointer, which may be a number already. */
static __always_inline __u64 probed_key_of(struct sock *sk)
{
	__u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &sk);
	/* What is read back from a map is a number. Everybody writes the same. */
	*(volatile __u64 *)&tt_base = (__u64)&tt_config;
	return address - *(volatile __u64 *)&tt_base;
}

/* What the compiler knows of the variable, it forgets. */
#define forget(var) asm volatile("" : "+r"(var))

/*
 * Set before a connection is followed that has another id than its socket's cookie. Where programs cannot ask for cookies, the
 * reader sets it at the start.
 */
volatile __u32 tt_cookieless = 0;

/* Where a key is looked for. To find that takes as long as to look. */
struct tt_place {
	__u64 key;
	struct tt_set *set; /* or NULL: the table has none */
};

static __always_inline struct tt_place place_of(__u64 key)
{
	/* Fibonacci hashing. */
	__u32 number = key * 0x9e3779b97f4a7c15ULL >> 32 & tt_config.set_mask;
	struct tt_place place = {
		.key = key,
		.set = tt_config.has_sets ? bpf_map_lookup_elem(&sets, &number) : NULL,
	};

	return place;
}

/*
 * The slot of a way that is any number up to TT_WAYS. Which one the verifier is to forget: it would follow what comes next for
 * each. It does not know that a number minus itself is 0.
 */
static __always_inline struct tt_slot *slot_at(struct tt_set *set, __u64 way, __u64 number)
{
	__u64 same = number;

	forget(same);
	forget(way);
	way += same - number;
	return &set->slots[way & (TT_WAYS - 1)];
}

/* The first slot that has the key, or the last one. */
static __always_inline struct tt_slot *slot_of(struct tt_set *set, __u64 key)
{
	__u64 way;

#pragma unroll
	for (way = 0; way < TT_WAYS - 1; way++)
		if (set->slots[way].key == key)
			break;
	return slot_at(set, way, key);
}

static __always_inline struct tt_conn *lookup_at(struct tt_place place)
{
	struct tt_set *set = place.set;
	__u64 key = place.key;

	if (set) {
		struct tt_slot *slot = slot_of(set, key);

		if (slot->key == key)
			return &slot->conn;
		if (!set->spilled)
			return NULL;
	}
	return bpf_map_lookup_elem(&conns, &key);
}

static __always_inline struct tt_conn *lookup_conn(__u64 key)
{
	return lookup_at(place_of(key));
}

static __always_inline void release(struct tt_slot *slot)
{
	slot->tail = 0;
	slot->key = 0;
	keep_order();
	add_to(&slot->claims, -1);
}

/* Whether the slot is the caller's now. */
static __always_inline bool claim(struct tt_slot *slot)
{
	if (read_once(slot->claims))
		return false;
	add_to(&slot->claims, 1);
	if (read_once(slot->claims) == 1)
		return true;
	add_to(&slot->claims, -1);
	return false;
}

/*
 * Somebody who does not hold the socket's lock may insert the same at the same time: the second goes, if it sees the first.
 * Otherwise it is not found, and goes with the first.
 */
static __always_inline bool is_second(struct tt_set *set, __u64 key, const struct tt_slot *slot)
{
	return slot_of(set, key) != slot;
}

/* A connection on its way into the table. */
struct tt_entry {
	struct tt_place place;
	struct tt_slot *slot; /* the caller's, or NULL: there is no room in the set */
};

/* Takes a slot for a key that the table does not have, if there is one. */
static __always_inline void claim_slot(struct tt_entry *entry, struct tt_place place)
{
	entry->place = place;
	entry->slot = NULL;
	if (place.set) {
		__u64 way;

#pragma unroll
		for (way = 0; way < TT_WAYS; way++)
			if (claim(&place.set->slots[way]))
				break;
		forget(way);
		if (way < TT_WAYS)
			entry->slot = slot_at(place.set, way, place.key);
	}
}

/* Where to make a connection that the table does not have: in a slot if there is one, or else in `spare`. It is empty. */
static __always_inline struct tt_conn *begin_conn(struct tt_entry *entry, struct tt_place place,
						  struct tt_conn *spare)
{
	struct tt_conn *conn;

	claim_slot(entry, place);
	conn = entry->slot ? &entry->slot->conn : spare;
	/* Or the compiler would choose anew for each field. */
	forget(conn);
	__builtin_memset(conn, 0, sizeof(*conn));
	return conn;
}

/* It is made: others may find it now. 0, -EEXIST, or another negative errno if there is no room. */
static __always_inline int end_conn(const struct tt_entry *entry, const struct tt_conn *spare)
{
	struct tt_slot *slot = entry->slot;
	struct tt_set *set = entry->place.set;
	__u64 key = entry->place.key, nothing = 0;
	int error;

	forget(nothing);
	if (slot) {
		slot->tail = key;
		keep_order();
		slot->key = key;
		/* Seen by others before the look at theirs. */
		add_to(&slot->claims, nothing);
		if (!is_second(set, key, slot))
			return 0;
		release(slot);
		return -EEXIST;
	}
	/* An int: before 6.4 the upper half of the result is not set. */
	error = bpf_map_update_elem(&conns, &key, spare, BPF_NOEXIST);
	if (!error && set)
		add_to(&set->spilled, 1);
	return error;
}

/* As end_conn(). */
static __noinline int insert_conn(__u64 key, const struct tt_conn *conn)
{
	struct tt_place place = place_of(key);
	struct tt_entry entry;

	if (lookup_at(place))
		return -EEXIST;
	claim_slot(&entry, place);
	if (entry.slot)
		entry.slot->conn = *conn;
	return end_conn(&entry, conn);
}

static __always_inline void delete_at(struct tt_place place)
{
	struct tt_set *set = place.set;
	__u64 key = place.key;

	if (set) {
		bool found = false;

#pragma unroll
		for (int i = 0; i < TT_WAYS; i++) {
			if (set->slots[i].key == key) {
				release(&set->slots[i]);
				found = true;
			}
		}
		if (found || !set->spilled)
			return;
	}
	if (!(int)bpf_map_delete_elem(&conns, &key) && set)
		add_to(&set->spilled, -1);
}

static __always_inline void delete_conn(__u64 key)
{
	delete_at(place_of(key));
}

#endif
