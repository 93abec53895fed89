/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Cgroups that come and go, so that a container is known before its first process runs. */
#ifndef TT_CGROUP_BPF_H
#define TT_CGROUP_BPF_H

/*
 * In the same ring as the events, so that the reader learns of a cgroup before it sees a
 * connection of a process in it.
 */
static __always_inline void report_cgroup(struct cgroup *cgroup, const char *path, __u32 change)
{
	struct tt_cgroup *record;
	long len;

	if ((__u32)cgroup->root->hierarchy_id != tt_config.hierarchy)
		return;
	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record) {
		count(TT_RING_FULL);
		return;
	}
	record->id = cgroup->kn->id;
	record->change = change;
	__builtin_memset(record->path, 0, sizeof(record->path));
	len = bpf_probe_read_kernel_str(record->path, sizeof(record->path), path);
	record->path_len = len > 0 ? len - 1 : 0;
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	wake_parked_reader();
}

#endif
