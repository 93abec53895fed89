/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Identity of processes. Only meaningful where the task is known to be the actor. */
#ifndef TT_PROCESS_BPF_H
#define TT_PROCESS_BPF_H

#define TT_MAX_CGROUP_DEPTH 32

/* Before 5.11 the current task is an address, which only probe reads can follow. */
static __always_inline bool task_is_trusted(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf);
}

static __always_inline struct task_struct *current_task(void)
{
	if (task_is_trusted())
		return bpf_get_current_task_btf();
	return (struct task_struct *)bpf_get_current_task();
}

static __always_inline __u32 task_flags(struct task_struct *task)
{
	return task_is_trusted() ? task->flags : BPF_CORE_READ(task, flags);
}

static __always_inline __u32 task_tgid(struct task_struct *task)
{
	return task_is_trusted() ? task->tgid : BPF_CORE_READ(task, tgid);
}

static __always_inline struct cgroup *task_cgroup(struct task_struct *task)
{
	return task_is_trusted() ? task->cgroups->dfl_cgrp : BPF_CORE_READ(task, cgroups, dfl_cgrp);
}

/*
 * Remember the chain of parents up to the first one that is known already; the root's is
 * 0. Nearly always the cgroup itself is known, and that is all there is to do.
 */
static __always_inline void remember_cgroup_parents(struct task_struct *task, __u64 id)
{
	struct cgroup *cgroup;

	if (bpf_map_lookup_elem(&cgroup_parents, &id))
		return;
	cgroup = task_cgroup(task);
	for (int i = 0; i < TT_MAX_CGROUP_DEPTH; i++) {
		__u64 parent_id = 0;

		/* `self` is the first member of a cgroup. */
		cgroup = (struct cgroup *)BPF_CORE_READ(cgroup, self.parent);
		if (cgroup)
			parent_id = BPF_CORE_READ(cgroup, kn, id);
		bpf_map_update_elem(&cgroup_parents, &id, &parent_id, BPF_ANY);
		id = parent_id;
		if (!cgroup || bpf_map_lookup_elem(&cgroup_parents, &id))
			return;
	}
}

/* From 6.2 on, from the current task. Otherwise each load comes with a check that takes seven instructions. */
static __always_inline bool loads_are_cheap(void)
{
	return task_is_trusted() &&
	       bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_cgrp_storage_get);
}

/*
 * io_uring's own threads are called iou-*; their leader has the name people know. Byte by
 * byte where that costs less than the call of a helper: the verifier allows no larger loads
 * from an array of char.
 */
static __always_inline void read_comm(struct task_struct *task, char *comm)
{
	if (task_flags(task) & PF_IO_WORKER) {
		task = BPF_CORE_READ(task, group_leader);
		bpf_core_read(comm, TT_COMM_LEN - 1, &task->comm);
	} else if (loads_are_cheap()) {
#pragma unroll
		for (int i = 0; i < TT_COMM_LEN - 1; i++)
			comm[i] = task->comm[i];
	} else {
		bpf_core_read(comm, TT_COMM_LEN - 1, &task->comm);
	}
	comm[TT_COMM_LEN - 1] = 0;
}

/* Of a task's cgroup. */
static __always_inline __u64 id_of_cgroup(struct cgroup *cgroup)
{
	return task_is_trusted() ? cgroup->kn->id : BPF_CORE_READ(cgroup, kn, id);
}

/* An exiting task has no nsproxy any more: then this is 0, which no map holds. */
static __always_inline __u32 task_mntns(struct task_struct *task)
{
	return task_is_trusted() ? task->nsproxy->mnt_ns->ns.inum
				 : BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);
}

static __always_inline void read_process(struct task_struct *task, struct tt_process *process)
{
	process->cgroup_id = id_of_cgroup(task_cgroup(task));
	process->mntns = task_mntns(task);
	process->pid = task_tgid(task);
	if (task_is_trusted()) {
		process->tid = task->pid;
		process->uid = task->cred->uid.val;
	} else {
		process->tid = BPF_CORE_READ(task, pid);
		process->uid = BPF_CORE_READ(task, cred, uid.val);
	}
	read_comm(task, process->comm);
	if (tt_config.by_cgroup && !tt_config.owns_maps)
		remember_cgroup_parents(task, process->cgroup_id);
}

#endif
