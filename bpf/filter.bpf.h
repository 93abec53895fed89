/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which sockets are followed at all, and which processes' events are sent. */
#ifndef TT_FILTER_BPF_H
#define TT_FILTER_BPF_H

/* Of another network namespace than the one that is asked for: whatever happens to it is left at once. */
static __always_inline bool is_elsewhere(struct sock *sk)
{
	return tt_config.netns && netns_of(sk) != tt_config.netns;
}

/* Of another family than the one that is asked for. */
static __always_inline bool is_of_other_family(struct sock *sk)
{
	return tt_config.family && sk->__sk_common.skc_family != tt_config.family;
}

/*
 * Whether it is a TCP socket that somebody may ask for. Others use the states of TCP, but only stream sockets of the internet's
 * families report them under its protocol. A socket with an entry in the table, which its cookie proves to be its own, needs no
 * such question, and most of the rest is left before it.
 */
static __always_inline bool is_candidate(struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_TCP && !is_elsewhere(sk);
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

/* A cgroup is selected by its own id or by that of any cgroup above it. */
static __always_inline bool cgroup_selected(__u64 id)
{
	for (int i = 0; i < TT_MAX_CGROUP_DEPTH; i++) {
		__u64 *parent;

		if (holds(&cgroupmap, id))
			return true;
		parent = bpf_map_lookup_elem(&cgroup_parents, &id);
		if (!parent || !*parent)
			return false;
		id = *parent;
	}
	return false;
}

/* So many levels below the root may a cgroup be that is selected itself. Those below it may be any. */
#define TT_LEVELS 64

/* Whether a cgroup or one above it is selected. By probe reads: the pointer may be a number. */
static __noinline bool is_below_selected(struct cgroup *cgroup)
{
	int level = BPF_CORE_READ(cgroup, level);

	for (int i = 0; i < TT_LEVELS && i <= level; i++) {
		__u64 id = 0;

		if (bpf_core_field_exists(cgroup->ancestors)) {
			struct cgroup *ancestor = NULL;

			bpf_core_read(&ancestor, sizeof(ancestor), &cgroup->ancestors[i]);
			id = BPF_CORE_READ(ancestor, kn, id);
		} else {
			bpf_core_read(&id, sizeof(id),
				      &((struct cgroup___6_0 *)cgroup)->ancestor_ids[i]);
		}
		if (holds(&cgroupmap, id))
			return true;
	}
	return false;
}

/*
 * Whether a cgroup is so new that the reader may not have put it into the maps. Cgroups get their ids in the order in which they
 * are made. Asked before the maps are.
 */
static __always_inline bool is_undecided(__u64 cgroup)
{
	bool undecided = cgroup > tt_generation.decided ||
			 (tt_generation.unsaid && cgroup >= tt_generation.unsaid) ||
			 (tt_made.lost != tt_generation.healed && cgroup >= tt_made.lost_from);

	keep_order();
	return undecided;
}

enum tt_verdict {
	TT_FOREIGN = 0,
	TT_SELECTED = 1,
	TT_UNSETTLED = 2, /* the cgroup is undecided, what is above it is not known, or nothing is remembered */
};

/* Where a verdict is remembered, and what is there if it is the present one, but for the lowest bit: that is the verdict. */
struct tt_question {
	__u64 *kept; /* or NULL */
	__u64 asked;
};

/*
 * The number of a mount namespace in few bits: the kernel counts up from just above the one that is subtracted. Never 0, which
 * stands for a verdict on the cgroup alone.
 */
static __always_inline __u64 short_mntns(__u32 mntns)
{
	return mntns ? mntns - 0xefffff00 : 1;
}

/*
 * What is remembered, where nobody else edits the maps. The generation is read before the maps are: it is not newer than what
 * they hold, but where a processor reads ahead. The reader goes through the maps now and then, which heals that.
 */
static __always_inline enum tt_verdict recall(struct tt_question *question, __u64 cgroup,
					      __u64 mntns)
{
	__u32 place = (cgroup + mntns * 7) & (TT_VERDICTS - 1);
	__u64 known;

	question->kept = NULL;
	/* There are hardly ever ids of more bits. */
	if (cgroup >> 27 || mntns >> 20)
		return TT_UNSETTLED;
	question->asked = cgroup << 37 | mntns << 17 |
			  (read_once(tt_generation.changes) & 0xffff) << 1;
	question->kept = bpf_map_lookup_elem(&verdicts, &place);
	if (!question->kept)
		return TT_UNSETTLED;
	known = read_once(*question->kept);
	return (known & ~1ULL) == question->asked ? known & 1 : TT_UNSETTLED;
}

static __always_inline enum tt_verdict settle(const struct tt_question *question,
					      enum tt_verdict verdict)
{
	if (question->kept && verdict != TT_UNSETTLED)
		*(volatile __u64 *)question->kept = question->asked | verdict;
	return verdict;
}

/* What the map of cgroups says. `cgroup`: what has the id, or NULL. */
static __always_inline enum tt_verdict look_up(__u64 id, struct cgroup *cgroup, bool undecided)
{
	if (holds(&cgroupmap, id))
		return TT_SELECTED;
	if (!cgroup || undecided)
		return TT_UNSETTLED;
	return is_below_selected(cgroup) ? TT_SELECTED : TT_FOREIGN;
}

/* Whether a cgroup is selected. */
static __always_inline enum tt_verdict verdict_on(__u64 id, struct cgroup *cgroup)
{
	struct tt_question question;
	enum tt_verdict known = recall(&question, id, 0);

	if (known != TT_UNSETTLED)
		return known;
	return settle(&question, look_up(id, cgroup, is_undecided(id)));
}

/* The same of a process. `cgroup`: its own, or NULL. */
static __always_inline enum tt_verdict verdict_on_process(const struct tt_process *process,
							  struct cgroup *cgroup)
{
	struct tt_question question;
	enum tt_verdict verdict = recall(&question, process->cgroup_id, short_mntns(process->mntns));
	bool undecided, mounts;

	if (verdict != TT_UNSETTLED)
		return verdict;
	undecided = is_undecided(process->cgroup_id);
	mounts = tt_config.by_mntns && holds(&mntnsmap, process->mntns);
	if (tt_config.by_mntns && mounts == tt_config.either)
		verdict = mounts ? TT_SELECTED : TT_FOREIGN;
	else if (tt_config.by_cgroup)
		verdict = look_up(process->cgroup_id, cgroup, undecided);
	else
		verdict = TT_SELECTED;
	return settle(&question, verdict);
}

static __always_inline bool maps_pass(const struct tt_process *process)
{
	if (tt_config.either)
		return cgroup_selected(process->cgroup_id) || holds(&mntnsmap, process->mntns);
	if (tt_config.by_cgroup && !cgroup_selected(process->cgroup_id))
		return false;
	return !tt_config.by_mntns || holds(&mntnsmap, process->mntns);
}

static __always_inline bool is_other_process(const struct tt_process *process)
{
	return tt_config.pid && process->pid != tt_config.pid;
}

/* What is not settled passes: the reader knows whose it is. */
static __always_inline bool selected(const struct tt_process *process)
{
	if (is_other_process(process))
		return false;
	if (!tt_config.owns_maps)
		return maps_pass(process);
	return verdict_on_process(process, NULL) != TT_FOREIGN;
}

/*
 * Asked for each event of a connection that is followed, because the maps may be edited while tracing. Where the reader alone
 * does that, what is followed is of whom it had selected when it began, and passes until its end, also if that has changed since:
 * the reader hands an event only to those who want it.
 */
static __always_inline bool still_selected(const struct tt_process *process)
{
	return tt_config.owns_maps || selected(process);
}

static __always_inline bool filters_processes(void)
{
	return tt_config.pid || tt_config.by_cgroup || tt_config.by_mntns;
}

#endif
