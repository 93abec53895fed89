// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Three programs that do nothing: what any tracer of whole connections costs at least. */

char LICENSE[] __attribute__((section("license"), used)) = "Dual BSD/GPL";

__attribute__((section("tp_btf/inet_sock_set_state"), used)) int transition(void *ctx)
{
	return 0;
}

__attribute__((section("tp_btf/tcp_destroy_sock"), used)) int destroyed(void *ctx)
{
	return 0;
}

__attribute__((section("fentry/security_sock_graft"), used)) int accepted(void *ctx)
{
	return 0;
}
