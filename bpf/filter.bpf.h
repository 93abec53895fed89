/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which sockets are followed at all, and which processes' events are sent. */
#ifndef TT_FILTER_BPF_H
#define TT_FILTER_BPF_H

/* Of another network namespace than the one that is asked for: whatever happens to it is left at once. */
static __always_inline bool is_elsewhere(struct sock *sk)
{
	return tt_config.netns && netns_of(sk) != tt_config.netns;
}

/* Filters by what a socket is from its start: no state is kept for others. */
static __always_inline bool follows(__u16 family, __u32 netns)
{
	if (tt_config.family && family != tt_config.family)
		return false;
	if (tt_config.netns && netns != tt_config.netns)
		return false;
	return true;
}

static __always_inline bool holds(void *outer, __u64 key)
{
	__u32 only = 0;
	void *map = bpf_map_lookup_elem(outer, &only);

	return map && bpf_map_lookup_elem(map, &key);
}

/*
 * A cgroup is selected by its own id or by that of any cgroup above it. It is settled unless a parent is not known, which
 * another CPU may be about to note.
 */
static __always_inline bool cgroup_selected(__u64 id, bool *settled)
{
	*settled = true;
	for (int i = 0; i < TT_MAX_CGROUP_DEPTH; i++) {
		__u64 *parent;

		if (holds(&cgroupmap, id))
			return true;
		parent = bpf_map_lookup_elem(&cgroup_parents, &id);
		if (!parent)
			break;
		if (!*parent)
			return false;
		id = *parent;
	}
	*settled = false;
	return false;
}

/*
 * The same, from the last time if the maps have not changed since. The generation is read before the maps are: it is not newer
 * than what they hold, but where a processor reads ahead. The reader goes through the maps now and then, which heals that.
 */
static __always_inline bool cgroup_passes(__u64 id)
{
	__u32 only = 0, place = id & (TT_VERDICTS - 1);
	__u64 *changes, *kept, asked, known;
	bool passes, settled;

	if (!tt_config.keep_verdicts)
		return cgroup_selected(id, &settled);
	changes = bpf_map_lookup_elem(&generation, &only);
	kept = bpf_map_lookup_elem(&verdicts, &place);
	/* No kernel gets to ids of more bits. */
	if (!changes || !kept || id >> 40)
		return cgroup_selected(id, &settled);
	/* One more, so that a place that was never taken is of no generation. */
	asked = id << 24 | ((read_once(*changes) + 1) & 0x7fffff) << 1;
	known = read_once(*kept);
	if ((known & ~1ULL) == asked)
		return known & 1;
	passes = cgroup_selected(id, &settled);
	if (settled)
		*(volatile __u64 *)kept = asked | passes;
	return passes;
}

/* Asked for each event, because the maps may be edited while tracing. */
static __always_inline bool selected(const struct tt_process *process)
{
	if (tt_config.pid && process->pid != tt_config.pid)
		return false;
	if (tt_config.either)
		return cgroup_passes(process->cgroup_id) || holds(&mntnsmap, process->mntns);
	if (tt_config.by_cgroup && !cgroup_passes(process->cgroup_id))
		return false;
	if (tt_config.by_mntns && !holds(&mntnsmap, process->mntns))
		return false;
	return true;
}

static __always_inline bool filters_processes(void)
{
	return tt_config.pid || tt_config.by_cgroup || tt_config.by_mntns;
}

#endif
