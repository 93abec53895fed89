/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The ABI between the programs and the reader.
 *
 * agent/tracer/bpf/wire.rs mirrors these structures; the build fails when a field's
 * offset or a size differs. Integers are in host byte order, addresses in network
 * order, times in nanoseconds of CLOCK_MONOTONIC with 0 for "not known". Every byte
 * of a record is initialised.
 */
#ifndef TT_EVENT_H
#define TT_EVENT_H

enum tt_type {
	TT_CONNECT = 1,
	TT_ACCEPT = 2,
	TT_CLOSE = 3,
	TT_FAILED = 4,   /* a connect that never was established */
	TT_EXISTING = 5, /* open when tracing started; sent by the snapshot only */
};

enum tt_role {
	TT_ROLE_UNKNOWN = 0,
	TT_ROLE_CLIENT = 1,
	TT_ROLE_SERVER = 2,
};

/* How the owner of a connection is known. */
enum tt_source {
	TT_SOURCE_UNKNOWN = 0,
	TT_SOURCE_CONNECT = 1,  /* it called connect */
	TT_SOURCE_ACCEPT = 2,   /* it called accept */
	TT_SOURCE_LISTENER = 3, /* it called listen; who accepted was not seen */
	TT_SOURCE_SNAPSHOT = 4, /* it held the socket when tracing started */
	TT_SOURCE_CLOSER = 5,   /* it closed the connection; nothing better is known */
};

enum tt_reason {
	TT_REASON_UNKNOWN = 0,
	TT_REASON_LOCAL = 1,        /* this side sent the first FIN */
	TT_REASON_REMOTE = 2,       /* the peer sent the first FIN */
	TT_REASON_RESET_LOCAL = 3,  /* this side aborted with a RST */
	TT_REASON_RESET_REMOTE = 4, /* a RST was received */
	TT_REASON_TIMEOUT = 5,      /* the peer stopped answering */
	TT_REASON_ABORT = 6,        /* the socket was destroyed from outside (ss -K) */
};

#define TT_COMM_LEN 16
#define TT_MADE_UP_ID (1ULL << 63)

/* A process, captured while it was the current one. */
struct tt_process {
	__u64 cgroup_id; /* cgroup v2 */
	__u32 pid;       /* thread group, in the initial pid namespace */
	__u32 tid;
	__u32 uid;
	__u32 mntns;
	char comm[TT_COMM_LEN]; /* of the thread */
};

/* What is known of a connection: the state kept per socket, sent as it is. */
struct tt_conn {
	__u64 cookie; /* of the socket; TT_MADE_UP_ID set: made up for want of one */
	__u64 t_syn;
	__u64 t_established;
	__u64 t_accepted;
	__u64 t_fin; /* the first FIN, sent or received */
	__u64 t_closed;
	struct tt_process owner;
	__u8 local[16]; /* the first 4 bytes for AF_INET */
	__u8 remote[16];
	__u32 netns; /* of the socket */
	__u32 closer_pid; /* 0 unless a process closed it */
	char closer_comm[TT_COMM_LEN];
	__u16 family;
	__u16 local_port;
	__u16 remote_port;
	__u16 error; /* errno that ended the connection, or 0 */
	__u16 noticed; /* errno that the kernel last announced to the process, or 0 */
	__u16 life; /* how often this socket had tried to connect before */
	__u8 role;
	__u8 source;
	__u8 reason;
	/*
	 * Progress. Bytes of their own, because some hooks of accept do not hold the
	 * socket lock that serialises the other writers.
	 */
	__u8 opened;   /* connect, accept or snapshot has been reported */
	__u8 closed;   /* the socket has reached TCP_CLOSE */
	__u8 reported; /* the end has been reported */
	__u8 grafted;  /* reached TCP_CLOSE while a file referred to it */
	__u8 closer_selected; /* the closer passes the filters that others edit, whatever the owner does */
	__u8 error_inferred; /* error was gone, and was concluded from what stays */
	__u8 pad[3];
};

/* A place in the table of connections. */
struct tt_slot {
	__u64 key;    /* of the socket; 0: nothing is here */
	__u64 claims; /* not 0: it is taken */
	struct tt_conn conn;
	__u64 tail; /* as the key: who reads on while another connection comes sees that they differ */
};

#define TT_WAYS 4

/* The places for the sockets of some addresses. */
struct tt_set {
	__u64 spilled; /* how many of them are in the hash map */
	struct tt_slot slots[TT_WAYS];
};

struct tt_event {
	__u64 time;
	struct tt_conn conn;
	__u64 bytes_sent; /* payload, retransmissions not counted twice */
	__u64 bytes_received;
	__u32 segs_out;
	__u32 segs_in;
	__u32 retransmits;
	__u32 srtt_us;
	__u8 type;
	__u8 counted; /* the six counters above are valid */
	__u8 pad[6];
};

/* A cgroup came or went. Told apart from an event by its size. */
enum tt_cgroup_change {
	TT_CGROUP_MADE = 1,
	TT_CGROUP_REMOVED = 2,
};

#define TT_PATH_LEN 512

struct tt_cgroup {
	__u64 id;
	__u32 change;
	__u32 path_len; /* without the terminator; a longer path is cut off */
	char path[TT_PATH_LEN]; /* from the root of the hierarchy */
};

/* What could not be done, counted per CPU; indices of the counters map. */
enum tt_counter {
	TT_RING_FULL = 0, /* an event had no room in the ring */
	TT_MAP_FULL = 1,  /* a connection had no room in the state map */
	TT_UNTRACKED = 2, /* a connection ended that no state was kept for */
	TT_CGROUPS = 3,   /* the coming or going of a cgroup had no room in the ring */
	TT_COUNTERS,
};

/* What has become of the filter maps, where nobody but the reader edits them. */
struct tt_generation {
	__u64 changes; /* how often they have been changed: counted after each change */
	__u64 growths; /* how often they have got entries: counted before that */
	__u64 seeded;  /* the growths as of which what was open is followed as well: what ends before that nobody has asked for */
	__u64 decided; /* the last cgroup of which the reader has decided whether it is selected */
	__u64 unsaid;  /* the first cgroup that the reader itself has lost since it last looked for all; 0: none */
	__u64 healed;  /* how many lost records of cgroups had been counted when it last looked for all */
};

/* Which cgroups the programs have seen being made. */
struct tt_made {
	__u64 first;     /* the id of the first; 0: none yet */
	__u64 lost;      /* how many had no room in the ring */
	__u64 lost_from; /* the id of the first of them that the reader has not looked for */
};

/* Set before load, constant afterwards. 0 turns a filter off. */
struct tt_config {
	__u32 pid;
	__u32 netns;
	__u16 family;
	__u8 by_cgroup;
	__u8 by_mntns;
	__u8 failed;           /* report failed connects */
	__u8 list_existing;    /* the snapshot reports what it finds */
	__u8 cookies;          /* tracing programs may ask for a socket's cookie (5.12) */
	__u8 either;           /* one of by_cgroup and by_mntns has to hold, not both */
	__u8 owns_maps;        /* nobody but the reader edits the filter maps */
	__u8 remembers;        /* sockets remember their connections while nothing is attached */
	__u8 has_sets;         /* the table of connections has sets */
	__u8 skips;            /* tasks can be preempted inside programs, which the kernel skips meanwhile (7.0) */
	__u8 own_ids;          /* never cookies: a socket may get one between two of its connections */
	__u8 pad[3];
	__u32 set_mask;        /* one less than how many, which is a power of two */
	__u32 hierarchy;       /* the one whose cgroups are reported; 0 is v2 */
};

_Static_assert(sizeof(struct tt_process) == 40, "tt_process has a hole");
_Static_assert(sizeof(struct tt_conn) == 168, "tt_conn has a hole");
_Static_assert(sizeof(struct tt_event) == 216, "tt_event has a hole");
_Static_assert(sizeof(struct tt_cgroup) == 528, "tt_cgroup has a hole");
_Static_assert(sizeof(struct tt_slot) == 192, "tt_slot has a hole");
_Static_assert(sizeof(struct tt_set) == 776, "tt_set has a hole");
_Static_assert(sizeof(struct tt_config) == 32, "tt_config has a hole");

#endif
