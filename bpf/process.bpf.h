/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Identity of processes. Only meaningful where the task is known to be the actor. */
#ifndef TT_PROCESS_BPF_H
#define TT_PROCESS_BPF_H

#define TT_MAX_CGROUP_DEPTH 32

/*
 * Remember the chain of parents up to the first one that is known already; the root's is
 * 0. Nearly always the cgroup itself is known, and that is all there is to do.
 */
static __always_inline void remember_cgroup_parents(struct task_struct *task, __u64 id)
{
	struct cgroup *cgroup = task->cgroups->dfl_cgrp;

	for (int i = 0; i < TT_MAX_CGROUP_DEPTH; i++) {
		__u64 parent_id = 0;

		if (bpf_map_lookup_elem(&cgroup_parents, &id))
			return;
		/* `self` is the first member of a cgroup. */
		cgroup = (struct cgroup *)BPF_CORE_READ(cgroup, self.parent);
		if (cgroup)
			parent_id = BPF_CORE_READ(cgroup, kn, id);
		bpf_map_update_elem(&cgroup_parents, &id, &parent_id, BPF_ANY);
		if (!cgroup)
			return;
		id = parent_id;
	}
}

/*
 * io_uring's own threads are called iou-*; their leader has the name people know. Byte by
 * byte: the verifier allows no larger loads from an array of char, and 16 of them still
 * cost less than one call of a helper.
 */
static __always_inline void read_comm(struct task_struct *task, char *comm)
{
	if (task->flags & PF_IO_WORKER)
		task = task->group_leader;
#pragma unroll
	for (int i = 0; i < TT_COMM_LEN - 1; i++)
		comm[i] = task->comm[i];
	comm[TT_COMM_LEN - 1] = 0;
}

static __always_inline void read_process(struct task_struct *task, struct tt_process *process)
{
	process->cgroup_id = task->cgroups->dfl_cgrp->kn->id;
	process->pid = task->tgid;
	process->tid = task->pid;
	process->uid = task->cred->uid.val;
	/* An exiting task has no nsproxy any more: this reads 0, which no map holds. */
	process->mntns = task->nsproxy->mnt_ns->ns.inum;
	read_comm(task, process->comm);
	if (tt_config.by_cgroup)
		remember_cgroup_parents(task, process->cgroup_id);
}

#endif
