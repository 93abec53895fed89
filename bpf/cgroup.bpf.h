/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Cgroups that come and go, so that a container is known before its first process runs. */
#ifndef TT_CGROUP_BPF_H
#define TT_CGROUP_BPF_H

/* Until the reader has looked for all cgroups, this one and those made later are undecided. */
static __always_inline void note_lost_cgroup(__u64 id)
{
	if (tt_made.lost == tt_generation.healed)
		tt_made.lost_from = id;
	keep_order();
	tt_made.lost++;
}

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
	if (change == TT_CGROUP_MADE && !tt_made.first)
		tt_made.first = cgroup->kn->id;
	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record) {
		if (change == TT_CGROUP_MADE)
			note_lost_cgroup(cgroup->kn->id);
		count(TT_CGROUPS);
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
