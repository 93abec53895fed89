/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whose connections are followed at all.
 *
 * Where somebody else may edit the filter maps at any time, everybody's. Where the reader alone does, those of whom it has
 * selected by the time at which they begin: nothing is kept of others. When it selects more, it has those looked for that are
 * open by then (snapshot.bpf.h).
 */
#ifndef TT_WANTED_BPF_H
#define TT_WANTED_BPF_H

#define TT_ROOT_CGROUP 1

/* The process is the one that acts. */
static __always_inline bool is_wanted(struct task_struct *task)
{
	struct tt_process process = {};

	if (!tt_config.owns_maps)
		return true;
	if (tt_config.pid)
		process.pid = task_tgid(task);
	if (tt_config.by_cgroup)
		process.cgroup_id = task_cgroup(task);
	if (tt_config.by_mntns)
		process.mntns = task_mntns(task);
	return passes(&process, task);
}

/* The cgroup of the process that made the socket or, if it was accepted, the socket that listens. 0: not known. */
static __always_inline __u64 cgroup_of_socket(struct sock *sk)
{
	struct sock_cgroup_data___5_14 *old;
	__u64 address = 0;

	if (!bpf_core_field_exists(sk->sk_cgrp_data))
		return 0;
	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		return sk->sk_cgrp_data.cgroup->kn->id;
	/* An address, unless the lowest bit is set: then a class of cgroup v1. The next one is a flag. */
	old = (struct sock_cgroup_data___5_14 *)&sk->sk_cgrp_data;
	bpf_core_read(&address, sizeof(address), &old->val);
	if (!address || address & 1)
		return 0;
	return BPF_CORE_READ((struct cgroup *)(address & ~3ULL), kn, id);
}

/* Whose it is tells the process that made it, which may have handed it to another one. */
static __always_inline enum tt_verdict verdict_on_socket(struct sock *sk)
{
	__u64 id = cgroup_of_socket(sk);
	enum tt_verdict verdict = id ? verdict_on(id) : TT_UNSETTLED;

	/* Where cgroups are those of v1, everybody is in the root of v2. */
	return id == TT_ROOT_CGROUP && verdict == TT_FOREIGN ? TT_UNSETTLED : verdict;
}

/*
 * An established socket that is for somebody to accept. Who accepts it is asked then: if it is somebody else than who made the
 * socket that listens, only the time of the handshake is lost.
 */
static __always_inline bool may_be_wanted(struct sock *sk)
{
	struct tt_listener *listener;
	enum tt_verdict verdict;
	__u64 port;

	if (!tt_config.owns_maps)
		return true;
	verdict = verdict_on_socket(sk);
	if (verdict != TT_UNSETTLED)
		return verdict;
	/* It has connected to one that connected to it, or has been accepted before its handshake was over. */
	if (is_grafted(sk))
		return false;
	port = listening_port(netns_of(sk), sk->__sk_common.skc_num);
	listener = bpf_map_lookup_elem(&listeners, &port);
	return !listener || listener->shared || selected(&listener->owner);
}

/*
 * This side ends a connection that has no entry: by its FIN or, without one, at once. It is to be counted as not followed. What
 * was on its way to its end when the hooks came, or when it was selected, is not among these, nor is a child that nobody accepted.
 */
static __always_inline void count_untracked(struct sock *sk)
{
	/* Without skipped programs, whoever is selected by the time of its connect or accept is followed. */
	if (tt_config.owns_maps && !tt_config.skips)
		return;
	if (!is_candidate(sk))
		return;
	if (tt_config.owns_maps) {
		enum tt_verdict verdict = verdict_on_socket(sk);

		/* Without the lock, any process is the current one. */
		if (verdict == TT_FOREIGN || (verdict == TT_UNSETTLED && !is_locked(sk)) ||
		    (is_locked(sk) && !is_wanted(current_task())))
			return;
	}
	if (is_grafted(sk) && !is_of_other_family(sk) &&
	    tt_generation.growths == tt_generation.seeded)
		count(TT_UNTRACKED);
}

#endif
