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

/* Only where nobody but the reader edits the maps. */
static __always_inline enum tt_verdict verdict_on_task(struct task_struct *task)
{
	struct tt_process process = {};
	struct cgroup *cgroup = NULL;

	if (tt_config.pid)
		process.pid = task_tgid(task);
	/* Read once: it may be moved to another one. */
	if (tt_config.by_cgroup) {
		cgroup = task_cgroup(task);
		process.cgroup_id = id_of_cgroup(cgroup);
	}
	if (tt_config.by_mntns)
		process.mntns = task_mntns(task);
	if (is_other_process(&process))
		return TT_FOREIGN;
	return verdict_on_process(&process, cgroup);
}

/* The process is the one that acts. */
static __always_inline bool is_wanted(struct task_struct *task)
{
	return !tt_config.owns_maps || verdict_on_task(task) != TT_FOREIGN;
}

/* The same of what is open already. What an undecided one has open is looked for once that is decided. */
static __always_inline bool is_chosen(struct task_struct *task)
{
	return !tt_config.owns_maps || verdict_on_task(task) == TT_SELECTED;
}

/* The cgroup of the process that made the socket or, if it was accepted, the socket that listens. Its id is 0 if it is not known. */
static __always_inline struct cgroup *cgroup_of_socket(struct sock *sk, __u64 *id)
{
	struct sock_cgroup_data___5_14 *old;
	struct cgroup *cgroup;
	__u64 address = 0;

	*id = 0;
	if (!bpf_core_field_exists(sk->sk_cgrp_data))
		return NULL;
	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup)) {
		cgroup = sk->sk_cgrp_data.cgroup;
		*id = cgroup->kn->id;
		return cgroup;
	}
	/* An address, unless the lowest bit is set: then a class of cgroup v1. The next one is a flag. */
	old = (struct sock_cgroup_data___5_14 *)&sk->sk_cgrp_data;
	bpf_core_read(&address, sizeof(address), &old->val);
	if (!address || address & 1)
		return NULL;
	cgroup = (struct cgroup *)(address & ~3ULL);
	*id = BPF_CORE_READ(cgroup, kn, id);
	return cgroup;
}

/* Whose it is tells the process that made it, which may have handed it to another one. */
static __always_inline enum tt_verdict verdict_on_socket(struct sock *sk)
{
	__u64 id;
	struct cgroup *cgroup = cgroup_of_socket(sk, &id);
	enum tt_verdict verdict = id ? verdict_on(id, cgroup) : TT_UNSETTLED;

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

/* What was open before the hooks came, or before its process was selected, is followed by now. */
static __always_inline bool is_seeded(void)
{
	return tt_generation.growths == tt_generation.seeded;
}

/*
 * This side ends a connection that has no entry, by its FIN or, without one, at once: whether it should have one. What was on
 * its way to its end when the hooks came, or when it was selected, is not among these, nor is a child that nobody accepted.
 */
static __always_inline bool is_untracked(struct sock *sk)
{
	/* Without skipped programs, whoever is selected by the time of its connect or accept is followed. */
	if (tt_config.owns_maps && !tt_config.skips)
		return false;
	if (!is_candidate(sk))
		return false;
	if (tt_config.owns_maps) {
		enum tt_verdict verdict = verdict_on_socket(sk);

		/* Without the lock, any process is the current one. */
		if (verdict == TT_FOREIGN || (verdict == TT_UNSETTLED && !is_locked(sk)) ||
		    (is_locked(sk) && !is_chosen(current_task())))
			return false;
	}
	return is_grafted(sk) && !is_of_other_family(sk) && is_seeded();
}

/* A process ends it by a call of its own. A kernel thread, such as that of MPTCP, does so for others. */
static __always_inline bool is_ended_by_process(struct sock *sk)
{
	return is_locked(sk) && !(task_flags(current_task()) & PF_KTHREAD);
}

/*
 * The same as is_untracked() of a socket that goes away and has no cookie. It has no file any more. A server that has sent
 * nothing is not found: nothing shows that its handshake was over.
 */
static __always_inline bool is_unseen(struct sock *sk)
{
	struct tcp_sock *tp;

	if (!is_ended_by_process(sk) || !is_candidate(sk) || is_of_other_family(sk) || !is_seeded())
		return false;
	/* It was established: the peer has acknowledged a SYN or a FIN. */
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp || !tp->bytes_acked)
		return false;
	return !tt_config.owns_maps ||
	       (verdict_on_socket(sk) != TT_FOREIGN && is_chosen(current_task()));
}

#endif
