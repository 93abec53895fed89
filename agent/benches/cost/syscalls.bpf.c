// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Counts the system calls of the processes whose ids are in the map. */

typedef unsigned int __u32;
typedef unsigned long long __u64;

/* The numbers that the kernel gives to what it offers: BPF_MAP_TYPE_HASH, bpf_map_lookup_elem, bpf_get_current_pid_tgid. */
#define HASH 1
static void *(*const lookup)(void *map, const void *key) = (void *)1;
static __u64 (*const current_pid_tgid)(void) = (void *)14;

struct {
	int (*type)[HASH];
	int (*max_entries)[16];
	__u32 *key;
	__u64 *value;
} calls __attribute__((section(".maps"), used));

char LICENSE[] __attribute__((section("license"), used)) = "Dual BSD/GPL";

__attribute__((section("raw_tp/sys_enter"), used)) int count(void *ctx)
{
	__u32 process = current_pid_tgid() >> 32;
	__u64 *counted = lookup(&calls, &process);

	if (counted)
		__sync_fetch_and_add(counted, 1);
	return 0;
}
