// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The hooks. Each one finds the socket and the transition; what follows from it is in
 * conn.bpf.h (the state machine), accept.bpf.h and snapshot.bpf.h.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "event.h"
#include "maps.bpf.h"
#include "sock.bpf.h"
#include "table.bpf.h"
#include "process.bpf.h"
#include "filter.bpf.h"
#include "listener.bpf.h"
#include "emit.bpf.h"
#include "error.bpf.h"
#include "memory.bpf.h"
#include "wanted.bpf.h"
#include "conn.bpf.h"
#include "accept.bpf.h"
#include "refusal.bpf.h"
#include "snapshot.bpf.h"
#include "cgroup.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* again: from the second of two programs, which may see what the first has handled. */
static __always_inline int on_transition(struct sock *sk, int from, int to, bool again)
{
	/* Nothing follows from these. */
	if (to == BPF_TCP_SYN_RECV || to == BPF_TCP_FIN_WAIT2)
		return 0;
	/* Its cookie cannot tell what is followed. */
	if (!tt_config.cookies && !is_candidate(sk))
		return 0;
	switch (to) {
	case BPF_TCP_SYN_SENT:
		if (is_candidate(sk))
			on_syn_sent(sk, again);
		break;
	case BPF_TCP_ESTABLISHED:
		on_established(sk, from);
		break;
	case BPF_TCP_FIN_WAIT1:
	case BPF_TCP_LAST_ACK:
		on_local_fin(sk, to, again);
		break;
	case BPF_TCP_CLOSE_WAIT:
		on_remote_fin(sk);
		break;
	case BPF_TCP_CLOSE:
		if (from == BPF_TCP_LISTEN && !again && is_candidate(sk))
			remove_listener(sk);
		else if (from != BPF_TCP_LISTEN && from != BPF_TCP_CLOSE)
			on_closed(sk, from, again);
		break;
	case BPF_TCP_LISTEN:
		if (!again && is_candidate(sk))
			add_listener(current_task(), sk);
		break;
	}
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tt_set_state, struct sock *sk, int from, int to)
{
	return on_transition(sk, from, to, false);
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tt_destroy_sock, struct sock *sk)
{
	if (!is_elsewhere(sk))
		on_destroyed(sk);
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(tt_receive_reset, struct sock *sk)
{
	if (!is_elsewhere(sk))
		on_reset(sk);
	return 0;
}

/* The error of every connection that ends with one, from 6.10 on and in some stable kernels before. */
SEC("?fentry/tcp_done_with_error")
int BPF_PROG(tt_done_with_error, struct sock *sk, int error)
{
	if (!is_elsewhere(sk))
		on_fatal_error(sk, error);
	return 0;
}

/* Elsewhere: runs before the process is woken, which may then clear the error. For sockets of all kinds. */
SEC("?fentry/sock_def_error_report")
int BPF_PROG(tt_error_report, struct sock *sk)
{
	if (is_tcp(sk) && !is_elsewhere(sk))
		on_error_announced(sk);
	return 0;
}

/*
 * From 7.0 on a task can be preempted inside a tracepoint. Until it runs again, for
 * milliseconds, the kernel skips the program it was in for everybody else on that CPU.
 * What later transitions cannot make up for is who connects.
 */
SEC("?fentry/tcp_connect")
int BPF_PROG(tt_tcp_connect, struct sock *sk)
{
	if (!is_elsewhere(sk))
		on_connecting(sk);
	return 0;
}

/* Where there are no trampolines, there is a second one, which finds nothing to do when the first has run. */
SEC("?tp_btf/inet_sock_set_state")
int BPF_PROG(tt_set_state_again, struct sock *sk, int from, int to)
{
	return on_transition(sk, from, to, true);
}

SEC("?tp_btf/tcp_destroy_sock")
int BPF_PROG(tt_destroy_sock_again, struct sock *sk)
{
	if (!is_elsewhere(sk))
		on_destroyed(sk);
	return 0;
}

/*
 * Where a socket gets its file: in the process that accepts, for each accept by whatever call, also of a thread that was
 * blocked in it before this was attached. For sockets of all kinds.
 */
SEC("?fentry/security_sock_graft")
int BPF_PROG(tt_sock_graft, struct sock *sk)
{
	if (!is_elsewhere(sk))
		on_grafted(sk);
	return 0;
}

/* Elsewhere. While one of these is attached, every system call of the host takes the slow way. */
static __always_inline int accept_returned(long fd)
{
	if (fd >= 0)
		on_accepted_fd(fd, true);
	return 0;
}

SEC("?tp/syscalls/sys_exit_accept")
int tt_exit_accept(struct trace_event_raw_sys_exit *ctx)
{
	return accept_returned(ctx->ret);
}

SEC("?tp/syscalls/sys_exit_accept4")
int tt_exit_accept4(struct trace_event_raw_sys_exit *ctx)
{
	return accept_returned(ctx->ret);
}

/*
 * Attached only once connections turn up whose accept no other hook saw: every
 * completion of every ring on the host passes here. A multishot completion does not
 * say what it is and its result may be no file descriptor at all, so this only ever
 * touches connections that wait for their accept.
 */
SEC("?tp/io_uring/io_uring_complete")
int tt_io_uring_complete(struct trace_event_raw_io_uring_complete *ctx)
{
	__u32 flags = ctx->cflags;
	int fd = ctx->res;

	if (fd < 0)
		return 0;
	if (bpf_core_field_exists(ctx->req)) {
		struct io_kiocb *req = ctx->req;

		if (req ? BPF_CORE_READ(req, opcode) != IORING_OP_ACCEPT
			: !(flags & IORING_CQE_F_MORE))
			return 0;
	}
	on_accepted_fd(fd, false);
	return 0;
}

/* Of TCP and, from some kernel on, of MPTCP; of system calls and of io_uring. */
SEC("?fentry/inet_stream_connect")
int BPF_PROG(tt_stream_connect)
{
	on_connect_called(0, 0);
	return 0;
}

SEC("?fexit/inet_stream_connect")
int BPF_PROG(tt_stream_connected, struct socket *socket, void *address, int len, int flags,
	     int result)
{
	on_stream_connected(socket, address, result);
	return 0;
}

/* For sockets of all kinds. */
SEC("?fexit/security_socket_connect")
int BPF_PROG(tt_connect_checked, struct socket *socket, void *address, int len, int result)
{
	on_connect_checked(socket, address, result);
	return 0;
}

/* Elsewhere, which does not see the connects of io_uring. */
SEC("?tp/syscalls/sys_enter_connect")
int tt_enter_connect(struct trace_event_raw_sys_enter *ctx)
{
	on_connect_called(ctx->args[0], ctx->args[1]);
	return 0;
}

SEC("?tp/syscalls/sys_exit_connect")
int tt_exit_connect(struct trace_event_raw_sys_exit *ctx)
{
	on_connect_returned(ctx->ret);
	return 0;
}

SEC("iter/task_file")
int tt_seed_listeners(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct sock *sk = sock_of_file(ctx->file);

	if (task && sk)
		seed_listener(task, sk);
	return 0;
}

SEC("iter/task_file")
int tt_seed_connections(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct sock *sk = sock_of_file(ctx->file);

	if (task && sk)
		seed_connection(task, sk, ctx->meta->seq);
	return 0;
}

SEC("?iter/task_file")
int tt_remember(struct bpf_iter__task_file *ctx)
{
	struct sock *sk = sock_of_file(ctx->file);

	if (sk)
		remember(sk);
	return 0;
}

SEC("?tp_btf/cgroup_mkdir")
int BPF_PROG(tt_cgroup_mkdir, struct cgroup *cgroup, const char *path)
{
	report_cgroup(cgroup, path, TT_CGROUP_MADE);
	return 0;
}

SEC("?tp_btf/cgroup_rmdir")
int BPF_PROG(tt_cgroup_rmdir, struct cgroup *cgroup, const char *path)
{
	report_cgroup(cgroup, path, TT_CGROUP_REMOVED);
	return 0;
}
