// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Which connections to watched server ports are live.
 *
 * Two hooks feed one set. The tracepoint sock:inet_sock_set_state does the accounting; a sockops program sees every
 * passive open as well, because the kernel skips a perf-attached tracepoint program whenever another tracing program
 * runs on that CPU. Both insert under the same identity: whoever comes first counts, the other finds the entry.
 * User space heals lost closes and remembers what was open before.
 *
 * A third hook, a filter of incoming packets that lets everything pass, is attached only while a GPU is parked although
 * connections are open: it rings for the first byte on one of those.
 *
 * bpf/README.md is the contract of the maps. Compiled by bcc with the stub headers beside this file; MAX_CONNECTIONS,
 * MAX_WATCHES and the OFFSET_s come from the loader, everything else arrives through maps.
 */

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6

#define TCP_ESTABLISHED 1
#define TCP_SYN_RECV 3
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_LISTEN 10

#define RING_FORCE_WAKEUP 2 /* BPF_RB_FORCE_WAKEUP */

#ifdef WITHOUT_PROBE_READ_KERNEL /* before Linux 5.5 */
#define bpf_probe_read_kernel bpf_probe_read
#endif

struct watch_key {
    u64 netns; /* cookie of the network namespace, 0 = any */
    u32 port;  /* local port, host order */
    u32 pad;
};

struct ignore_key {
    u32 prefix_bits; /* 32 for the slot, 96 for v4-in-v6, then the prefix's own */
    u32 slot;
    u8 peer[16];
};

struct identity {
    u64 netns;
    u16 local_port;
    u16 peer_port;
    u32 pad;
    u8 local[16]; /* IPv4 as ::ffff:a.b.c.d */
    u8 peer[16];
};

/* What user space has made of what was said so far. */
enum heard { NOT_HEARD, JUDGED, OWED };

struct connection {
    u64 since_ns; /* CLOCK_MONOTONIC; 0 if user space found it */
    u32 slot;     /* NO_WATCH: one of our own probes, which is nobody's work */
    u32 heard;
    u64 received; /* JUDGED: bytes from the client; OWED: since when the client waits for an answer */
    u64 sent;     /* JUDGED: bytes to the client */
};

/*
 * One per watch, read by user space through mmap; two cache lines. User space writes `armed` and, before the watch
 * begins, the two bounds of a touch. The others only grow; live = opened + seeded - closed - healed.
 */
struct slot {
    u64 opened;
    u64 closed;
    u64 last_activity_ns;
    u64 armed;   /* set by user space, cleared by the ring */
    u64 rang_ns; /* kernel time of the event that rang last */
    u64 rings;
    u64 overflow;    /* opens that found the set full */
    u64 ring_failed; /* rings that found the doorbell's buffer full */
    u64 ignored;
    u64 seen_by_sockops; /* opens that each hook saw, whichever came first; also those of a stale entry's identity */
    u64 seen_by_tracepoint;
    u64 last_work_ns; /* like last_activity_ns, without touches */
    u64 touches;      /* connections that were over sooner, and with fewer bytes from the client, than: */
    u64 touch_ns;
    u64 touch_bytes;
    u64 data_rings; /* of `rings`, those for data on an open connection */
};

#define WORK_SPANS 64 /* a power of two */
#define SHORTEST_GAP_NS 250000000 /* as in memscaler/core/gaps.py */

/* When a watch was at work, as far as its connections are over: spans with at least SHORTEST_GAP_NS between them. */
struct span {
    u64 number; /* 1 for the first: another one than expected stands where it was overwritten, or is not written yet */
    u64 begin_ns;
    u64 end_ns;
};

struct work {
    u64 count; /* spans so far; the newest of them still grows */
    struct span spans[WORK_SPANS];
};

/* The last slot is no watch: `opened` counts the listening sockets that came or went, `armed` rings `bulletin`. */
#define NO_WATCH MAX_WATCHES

BPF_F_TABLE("array", u32, u64, ports, 65536 / 64, 0); /* bit set: some watch has this port */
BPF_F_TABLE("hash", struct watch_key, u32, watches, MAX_WATCHES, 0);
BPF_F_TABLE("lpm_trie", struct ignore_key, u32, ignore, 1024, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", struct identity, struct connection, connections, MAX_CONNECTIONS, 0);
BPF_F_TABLE("hash", u64, u32, silent, MAX_CONNECTIONS, BPF_F_NO_PREALLOC); /* socket cookie -> slot: data rings */
#ifdef WITHOUT_RINGBUF /* before Linux 5.8: nobody can be woken, so `rings` counts everything that would have rung */
BPF_F_TABLE("array", u32, struct slot, slots, MAX_WATCHES + 1, 0);
BPF_F_TABLE("array", u32, struct work, work, MAX_WATCHES, 0);
#else
BPF_F_TABLE("array", u32, struct slot, slots, MAX_WATCHES + 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct work, work, MAX_WATCHES, BPF_F_MMAPABLE);
BPF_RINGBUF_OUTPUT(doorbell, 1);
BPF_RINGBUF_OUTPUT(bulletin, 1); /* listening sockets came or went */
#endif

/* The cheap question that all other traffic on the machine pays for. */
static inline int is_any_watch(u16 port)
{
    u32 word = port / 64;
    u64 *bits = ports.lookup(&word);

    return bits && (*bits >> (port % 64) & 1);
}

static inline u32 *find_watch(u64 netns, u32 port)
{
    struct watch_key key = { .netns = netns, .port = port };
    u32 *slot = watches.lookup(&key);

    if (slot || !netns)
        return slot;
    key.netns = 0;
    return watches.lookup(&key);
}

/*
 * User space sets `armed`, then looks at the counters; the hook counts, then looks at `armed`. One of the two must see
 * the other's write, so what stands between has to be a full barrier: the compare-and-exchange is one, a plain load of
 * `armed` before it would not be. Kernels before 5.12 have none; there two rings may come for one open, never too few.
 */
static inline int disarm(struct slot *slot)
{
#ifdef WITHOUT_RINGBUF
    return 1;
#elif defined(WITHOUT_COMPARE_AND_EXCHANGE)
    if (!slot->armed)
        return 0;
    slot->armed = 0;
    return 1;
#else
    return __sync_val_compare_and_swap(&slot->armed, 1, 0) == 1;
#endif
}

/* Returns whether it rang. */
static inline int ring(struct slot *slot, u64 now_ns)
{
    if (!disarm(slot))
        return 0;
    slot->rang_ns = now_ns;
    __sync_fetch_and_add(&slot->rings, 1);
#ifndef WITHOUT_RINGBUF
    u64 look = 1;

    if (doorbell.ringbuf_output(&look, sizeof(look), RING_FORCE_WAKEUP))
        __sync_fetch_and_add(&slot->ring_failed, 1);
#endif
    return 1;
}

/* A listening socket came or went: somebody may want to look which servers there are. */
static inline void announce(void)
{
    u32 index = NO_WATCH;
    struct slot *slot = slots.lookup(&index);

    if (!slot)
        return;
    __sync_fetch_and_add(&slot->opened, 1);
#ifndef WITHOUT_RINGBUF
    u64 look = 1;

    if (disarm(slot))
        bulletin.ringbuf_output(&look, sizeof(look), RING_FORCE_WAKEUP);
#endif
}

static inline int is_ignored(u32 index, const u8 *peer)
{
    struct ignore_key key = { .prefix_bits = 32 + 128, .slot = index };

    __builtin_memcpy(key.peer, peer, 16);
    return ignore.lookup(&key) != 0;
}

/* An open was seen by one of the hooks. Counted if the connection is new to the set; rings in any case. */
static inline void enter(struct identity *id, u32 index, int by_sockops)
{
    struct connection connection = { .slot = index, .since_ns = bpf_ktime_get_ns() };
    struct slot *slot = slots.lookup(&index);
    struct connection *known;

    if (!slot)
        return;
    if (is_ignored(index, id->peer)) {
        known = connections.lookup(id);
        if (!by_sockops && !known) /* else it is one of our own probes */
            __sync_fetch_and_add(&slot->ignored, 1);
        return;
    }
    if (!connections.insert(id, &connection)) {
        __sync_fetch_and_add(&slot->opened, 1);
    } else {
        /* The other hook was first, or an earlier connection of this identity was never seen to close. */
        known = connections.lookup(id);
        if (known && known->slot == NO_WATCH)
            return;
        if (known) {
            known->since_ns = connection.since_ns;
            known->heard = NOT_HEARD;
        } else {
            __sync_fetch_and_add(&slot->overflow, 1);
            slot->last_work_ns = connection.since_ns;
        }
    }
    if (by_sockops)
        __sync_fetch_and_add(&slot->seen_by_sockops, 1);
    else
        __sync_fetch_and_add(&slot->seen_by_tracepoint, 1);
    slot->last_activity_ns = connection.since_ns;
    ring(slot, connection.since_ns);
}

#define PING_BYTES 64 /* as in memscaler/kernel/traffic.py */

/*
 * What the end of a connection means. Nothing: no more was said than user space has judged already. A touch: so little
 * was asked, and for so short a time, that it cannot have been work. Work otherwise, and where nobody can tell.
 */
enum meaning { NOTHING, TOUCH, WORK };

static inline int meaning_of(const struct slot *slot, const struct connection *connection, u64 now_ns, const void *sk)
{
#ifdef OFFSET_BYTES_RECEIVED
    u64 received = ~0ULL, sent = 0;

    bpf_probe_read_kernel(&received, sizeof(received), sk + OFFSET_BYTES_RECEIVED);
    bpf_probe_read_kernel(&sent, sizeof(sent), sk + OFFSET_BYTES_SENT);
    if (connection->heard == JUDGED) {
        received -= connection->received;
        sent -= connection->sent;
        if (received <= 1) /* the FIN counts as one */
            return sent < PING_BYTES ? NOTHING : WORK;
        return slot->touch_ns && received < slot->touch_bytes ? TOUCH : WORK;
    }
    if (connection->since_ns && now_ns - connection->since_ns < slot->touch_ns && received < slot->touch_bytes)
        return TOUCH;
#endif
    return WORK;
}

/*
 * A connection was at work from begin_ns until now. Nothing is locked: who finds that the newest span does not hold his
 * own takes a place that is his alone. So two spans may overlap, but none is lost.
 */
static inline void worked(u32 index, u64 begin_ns, u64 now_ns)
{
    struct work *mine = work.lookup(&index);
    struct span *span;
    u64 count;

    if (!mine)
        return;
    count = mine->count;
    span = &mine->spans[(count - 1) & (WORK_SPANS - 1)];
    if (count && span->number == count && span->begin_ns <= begin_ns && begin_ns < span->end_ns + SHORTEST_GAP_NS) {
        span->end_ns = now_ns;
        return;
    }
#ifdef WITHOUT_COMPARE_AND_EXCHANGE
    /* Two CPUs may take one place; then a number is missing, and user space knows that it does not know. */
    __sync_fetch_and_add(&mine->count, 1);
#else
    count = __sync_fetch_and_add(&mine->count, 1);
#endif
    span = &mine->spans[count & (WORK_SPANS - 1)];
    span->begin_ns = begin_ns;
    span->end_ns = now_ns;
    span->number = count + 1;
}

/* Since when a connection that ends now has been at work; 0: longer than anybody knows. */
static inline u64 begin_of(const struct connection *connection, u64 now_ns)
{
    if (connection->heard == OWED)
        return connection->received;
    return connection->heard == JUDGED ? now_ns : connection->since_ns;
}

static inline void leave(struct identity *id, const void *sk)
{
    struct connection *found = connections.lookup(id), connection;
    u64 now_ns = bpf_ktime_get_ns();
    struct slot *slot;
    int meaning;

    if (!found)
        return;
    connection = *found;
    if (connections.delete(id))
        return; /* user space healed it in between */
    if (connection.slot == NO_WATCH)
        return;
    slot = slots.lookup(&connection.slot);
    if (!slot)
        return;
    /* Before the counting: who finds nobody live must find when the last one was. */
    meaning = meaning_of(slot, &connection, now_ns, sk);
    if (meaning != NOTHING)
        slot->last_activity_ns = now_ns;
    if (meaning == TOUCH)
        __sync_fetch_and_add(&slot->touches, 1);
    if (meaning == WORK) {
        slot->last_work_ns = now_ns;
        worked(connection.slot, begin_of(&connection, now_ns), now_ns);
    }
    __sync_fetch_and_add(&slot->closed, 1);
}

static inline u64 netns_of_socket(const void *sk)
{
    u64 cookie = 0;
#ifdef OFFSET_SKC_NET
    const void *net = 0;

    bpf_probe_read_kernel(&net, sizeof(net), sk + OFFSET_SKC_NET);
    bpf_probe_read_kernel(&cookie, sizeof(cookie), net + OFFSET_NET_COOKIE);
#endif
    return cookie;
}

static inline int is_live(int state)
{
    return state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT;
}

TRACEPOINT_PROBE(sock, inet_sock_set_state)
{
    struct identity id = {};
    u32 *index;
    int opens;

    if (args->protocol != IPPROTO_TCP) /* not MPTCP's 262: its subflows come by themselves */
        return 0;
    if (args->newstate == TCP_LISTEN || (args->oldstate == TCP_LISTEN && args->newstate == TCP_CLOSE)) {
        announce();
        return 0;
    }
    opens = args->oldstate == TCP_SYN_RECV && args->newstate == TCP_ESTABLISHED;
    /* Out of SYN_RECV too: with TCP Fast Open the sockops hook comes that early. */
    if (!opens && (is_live(args->newstate) || !(is_live(args->oldstate) || args->oldstate == TCP_SYN_RECV)))
        return 0;
    if (!is_any_watch(args->sport)) /* inet_sport: still there when the socket is done with */
        return 0;

    id.netns = netns_of_socket(args->skaddr);
    id.local_port = args->sport;
    id.peer_port = args->dport;
    /* Only the v6 fields are right for every family; IPv4 stands there as ::ffff:a.b.c.d. */
    __builtin_memcpy(id.local, args->saddr_v6, 16);
    __builtin_memcpy(id.peer, args->daddr_v6, 16);
    if (!opens) {
        leave(&id, args->skaddr);
        return 0;
    }
    index = find_watch(id.netns, id.local_port);
    if (index)
        enter(&id, *index, 0);
    return 0;
}

#ifdef WITH_SOCKOPS
/* clang would merge these loads into one of a modified context pointer, which the verifier refuses. */
#define LOAD(target, field)                   \
    do {                                      \
        (target) = (field);                   \
        asm volatile("" : "+r"(target));      \
    } while (0)

static inline void put_v4(u8 *address, u32 v4)
{
    address[10] = 0xff;
    address[11] = 0xff;
    __builtin_memcpy(address + 12, &v4, 4);
}

int passive_open(struct bpf_sock_ops *ops)
{
    struct identity id = {};
    u32 *index, port, peer_port, family, a, b, c, d;

    if (ops->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
        return 1;
    LOAD(port, ops->local_port);
    if (!is_any_watch(port))
        return 1;
    LOAD(peer_port, ops->remote_port);
    LOAD(family, ops->family);
#ifdef OFFSET_SKC_NET
    id.netns = bpf_get_netns_cookie(ops);
#endif
    index = find_watch(id.netns, port);
    if (!index)
        return 1;
    id.local_port = port;
    id.peer_port = bpf_ntohl(peer_port);
    if (family == AF_INET6) {
        LOAD(a, ops->local_ip6[0]);
        LOAD(b, ops->local_ip6[1]);
        LOAD(c, ops->local_ip6[2]);
        LOAD(d, ops->local_ip6[3]);
        __builtin_memcpy(id.local, (u32[]){ a, b, c, d }, 16);
        LOAD(a, ops->remote_ip6[0]);
        LOAD(b, ops->remote_ip6[1]);
        LOAD(c, ops->remote_ip6[2]);
        LOAD(d, ops->remote_ip6[3]);
        __builtin_memcpy(id.peer, (u32[]){ a, b, c, d }, 16);
    } else {
        LOAD(a, ops->local_ip4);
        LOAD(b, ops->remote_ip4);
        put_v4(id.local, a);
        put_v4(id.peer, b);
    }
    enter(&id, *index, 1);
    return 1;
}

/* A packet of a socket that was silent, with so much data, rings. */
static inline void listen_to(struct __sk_buff *packet, u32 least)
{
    u8 first = 0, next = IPPROTO_TCP, offset = 0;
    struct slot *slot;
    u32 *index, headers;
    u64 cookie;

    if (!is_any_watch(packet->local_port))
        return;
    cookie = bpf_get_socket_cookie(packet);
    index = silent.lookup(&cookie);
    if (!index)
        return;
    slot = slots.lookup(index);
    if (!slot)
        return;
#ifndef WITHOUT_RINGBUF
    if (!slot->armed) /* an active connection costs no more than this */
        return;
#endif
    /* The packet begins with the IP header. IPv6 extension headers are rare: such a packet counts as data. */
    bpf_skb_load_bytes(packet, 0, &first, 1);
    headers = (first & 15) * 4;
    if (first >> 4 == 6) {
        headers = 40;
        bpf_skb_load_bytes(packet, 6, &next, 1);
    }
    bpf_skb_load_bytes(packet, headers + 12, &offset, 1);
    headers += (offset >> 4) * 4;
    if (next == IPPROTO_TCP && packet->len < headers + least) /* a bare acknowledgement, the end, a ping */
        return;
    if (ring(slot, bpf_ktime_get_ns()))
        __sync_fetch_and_add(&slot->data_rings, 1);
}

/* Incoming and outgoing packets of every socket. Never drop one. Both are attached while a GPU is parked only. */
int data_arrived(struct __sk_buff *packet)
{
    listen_to(packet, 1);
    return 1;
}

int data_sent(struct __sk_buff *packet)
{
    listen_to(packet, PING_BYTES);
    return 1;
}
#endif
