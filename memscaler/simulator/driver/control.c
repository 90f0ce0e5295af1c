/* libmemscaler-simulator.so: the remote control. The same state.c and model.c as in the driver libraries, so a test reads the very
 * values a client reads. Everything is get/set by key; the Python side adds types. All return 0 or a negative errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>

#include "boards.h"
#include "calls.h"
#include "model.h"

typedef struct {
    sim_state *state;
    int fd;
} sim_remote;

static sim_remote remotes[256];
static pthread_mutex_t remotes_mutex = PTHREAD_MUTEX_INITIALIZER;

static int remember(sim_state *state, int fd) {
    pthread_mutex_lock(&remotes_mutex);
    int index = 0;
    while (index < 256 && remotes[index].state) index++;
    if (index < 256) remotes[index] = (sim_remote){state, fd};
    pthread_mutex_unlock(&remotes_mutex);
    return index < 256 ? index : -EMFILE;
}

EXPORT int memscaler_sim_attach(const char *path) {
    sim_state *state;
    int fd = sim_map(path, &state);
    return fd < 0 ? fd : remember(state, fd);
}

EXPORT int memscaler_sim_close(int remote) {
    munmap(remotes[remote].state, sizeof(sim_state));
    close(remotes[remote].fd);
    remotes[remote] = (sim_remote){0};
    return 0;
}

static void ring(sim_state *state) {
    atomic_fetch_add(&state->event_bell, 1);
    syscall(SYS_futex, &state->event_bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* ---- creation: the file is complete before it gets its name ---- */

static void state_defaults(sim_state *state) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&state->mutex, &attributes);
    strcpy(state->driver_version, "580.95.05");
    strcpy(state->nvml_version, "13.580.95.05");
    state->cuda_version = 13000;
    state->generation = 1;
    state->stale_code = NVML_ERROR_UNKNOWN;
    sim_boot_id(state->boot);
    state->version = SIM_VERSION;
    state->size = sizeof *state;
    atomic_store(&state->magic, SIM_MAGIC);
}

EXPORT int memscaler_sim_create(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) return -errno;
    fchmod(fd, 0666); /* unprivileged clients need it like /dev/nvidia0 */
    sim_state *state = ftruncate(fd, sizeof *state) ? MAP_FAILED
                       : mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (state == MAP_FAILED) {
        int error = errno;
        close(fd);
        return -error;
    }
    state_defaults(state);
    return remember(state, fd);
}

static uint64_t hash(const char *text, uint64_t seed) {
    uint64_t value = 0xcbf29ce484222325ull ^ seed * 0x9e3779b97f4a7c15ull;
    for (; *text; text++) value = (value ^ (uint8_t)*text) * 0x100000001b3ull;
    return value ^ value >> 29;
}

EXPORT int memscaler_sim_add_board(int remote, const char *key) {
    static const uint8_t buses[] = {0x3b, 0x86, 0xaf, 0xd8, 0x18, 0x5e, 0xb1, 0xda, 0x07, 0x0a, 0x47, 0x4d, 0x87, 0x8d, 0xc1, 0xc7};
    sim_state *state = remotes[remote].state;
    const sim_spec *spec = board_find(key);
    if (!spec) return -ENOENT;
    if (state->board_count == SIM_MAX_GPUS) return -ENOSPC;
    uint32_t index = state->board_count;
    sim_board *board = &state->boards[index];
    board->spec = *spec;
    board->pci_bus = buses[index];
    board->settle_park_us = board->settle_wake_us = 20000;
    uint64_t high = hash(key, index), low = hash(key, index + 1000);
    snprintf(board->uuid, sizeof board->uuid, "GPU-%08x-%04x-%04x-%04x-%012llx", (unsigned)(high >> 32), (unsigned)(high >> 16) & 0xffff,
             (unsigned)high & 0xffff, (unsigned)(low >> 48), (unsigned long long)low & 0xffffffffffffull);
    snprintf(board->serial, sizeof board->serial, "13%011llu", (unsigned long long)(high % 100000000000ull));
    for (int i = 0; i < 2; i++) board->dynamic[i].temperature_c = 34;
    model_start(board, sim_now_ns());
    state->board_count = index + 1;
    return (int)index;
}

EXPORT const char *memscaler_sim_board_key(unsigned index) { return index < board_catalogue_size ? board_catalogue[index].key : NULL; }

/* ---- get and set by key ---- */

typedef struct { const char *key; size_t offset; } key_offset;
#define LOOKUP(table, wanted) lookup(table, sizeof table / sizeof table[0], wanted)
static const key_offset *lookup(const key_offset *table, size_t count, const char *key) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(table[i].key, key) == 0) return &table[i];
    return NULL;
}

#define DRIVER_KEY(name) {#name, offsetof(sim_state, name)}
static const key_offset driver_keys[] = {
    DRIVER_KEY(init_code), DRIVER_KEY(stale_code), DRIVER_KEY(permission), DRIVER_KEY(answers_mclk), DRIVER_KEY(log_everything),
    DRIVER_KEY(setter_latency_us), DRIVER_KEY(getter_latency_us), DRIVER_KEY(nvapi_reversed), DRIVER_KEY(cuda_version),
    DRIVER_KEY(board_count), DRIVER_KEY(generation)};

#define BOARD_KEY(name) {#name, offsetof(sim_board, name)}
#define SPEC_KEY(name) {#name, offsetof(sim_board, spec.name)}
static const key_offset board_keys[] = {
    BOARD_KEY(pci_domain), BOARD_KEY(pci_bus), BOARD_KEY(initial_persistence), BOARD_KEY(settle_park_us), BOARD_KEY(settle_wake_us),
    SPEC_KEY(flags), SPEC_KEY(mclk_switch_type), SPEC_KEY(mclk_min_interval_ms), SPEC_KEY(virtualization), SPEC_KEY(mig_instances),
    SPEC_KEY(bare_mw), SPEC_KEY(context_mw), SPEC_KEY(parked_mw), SPEC_KEY(active_mw), SPEC_KEY(context_memory_mhz),
    SPEC_KEY(context_graphics_mhz), SPEC_KEY(idle_graphics_mhz)};

#define DYNAMIC_KEY(name) {#name, offsetof(sim_dynamic, name)}
static const key_offset dynamic_keys[] = {
    DYNAMIC_KEY(memory_lock_min_mhz), DYNAMIC_KEY(memory_lock_max_mhz), DYNAMIC_KEY(graphics_lock_min_mhz),
    DYNAMIC_KEY(graphics_lock_max_mhz), DYNAMIC_KEY(application_memory_mhz), DYNAMIC_KEY(application_graphics_mhz),
    DYNAMIC_KEY(forced_pstate), DYNAMIC_KEY(persistence), DYNAMIC_KEY(utilization_percent), DYNAMIC_KEY(memory_utilization_percent),
    DYNAMIC_KEY(limit_mw), DYNAMIC_KEY(temperature_c), DYNAMIC_KEY(lost), DYNAMIC_KEY(context), DYNAMIC_KEY(process_count)};

#define VIEW_KEY(name) {#name, offsetof(sim_view, name)}
static const key_offset view_keys[] = {
    VIEW_KEY(memory_mhz), VIEW_KEY(graphics_mhz), VIEW_KEY(pstate), VIEW_KEY(natural_memory_mhz), VIEW_KEY(natural_graphics_mhz),
    VIEW_KEY(slow), VIEW_KEY(settling), VIEW_KEY(power_mw), VIEW_KEY(average_mw), VIEW_KEY(utilization_percent)};

static uint32_t *word(const void *base, const key_offset *key) { return (uint32_t *)((char *)(uintptr_t)base + key->offset); }

static int get_dynamic(sim_remote *remote, const sim_board *board, const char *key, double *out) {
    const key_offset *found = LOOKUP(dynamic_keys, key);
    sim_lock(remote->state);
    sim_deinitialise_unused(remote->state, remote->fd);
    sim_view view = model_view(board, sim_now_ns());
    const sim_dynamic *dynamic = model_read(board);
    if (found) *out = *word(dynamic, found);
    else if ((found = LOOKUP(view_keys, key))) *out = *word(&view, found);
    else if (strcmp(key, "energy_mj") == 0) *out = view.energy_mj;
    else if (strcmp(key, "used_bytes") == 0) *out = (double)view.used_bytes;
    else if (strcmp(key, "context_bytes") == 0) *out = (double)dynamic->context_bytes;
    else if (strcmp(key, "mclk_too_soon") == 0) *out = (double)dynamic->mclk_too_soon;
    else *out = -1;
    sim_unlock(remote->state);
    return *out == -1 ? -ENOENT : 0;
}

EXPORT int memscaler_sim_get(int remote, int gpu, const char *key, double *out) {
    sim_state *state = remotes[remote].state;
    const key_offset *found = gpu < 0 ? LOOKUP(driver_keys, key) : LOOKUP(board_keys, key);
    if (gpu >= (int)state->board_count) return -ENODEV;
    if (found) *out = *(int32_t *)word(gpu < 0 ? (void *)state : (void *)&state->boards[gpu], found);
    else if (gpu < 0) return -ENOENT;
    else return get_dynamic(&remotes[remote], &state->boards[gpu], key, out);
    return 0;
}

EXPORT int memscaler_sim_set(int remote, int gpu, const char *key, int64_t value) {
    sim_state *state = remotes[remote].state;
    if (gpu >= (int)state->board_count) return -ENODEV;
    const key_offset *found = gpu < 0 ? LOOKUP(driver_keys, key) : LOOKUP(board_keys, key);
    const key_offset *dynamic = gpu < 0 || found ? NULL : LOOKUP(dynamic_keys, key);
    int bytes = gpu >= 0 && strcmp(key, "context_bytes") == 0;
    if (!found && !dynamic && !bytes) return -ENOENT;
    sim_lock(state);
    if (found) *word(gpu < 0 ? (void *)state : (void *)&state->boards[gpu], found) = (uint32_t)value;
    if (gpu >= 0) {
        sim_dynamic *edited = model_edit(&state->boards[gpu]);
        if (dynamic) *word(edited, dynamic) = (uint32_t)value;
        if (bytes) edited->context_bytes = (uint64_t)value;
        model_commit(&state->boards[gpu], edited, sim_now_ns());
    }
    sim_deinitialise_unused(state, remotes[remote].fd);
    sim_unlock(state);
    if (dynamic) ring(state); /* a blocked event wait must notice a lost GPU */
    return 0;
}

EXPORT int memscaler_sim_get_text(int remote, int gpu, const char *key, char out[128]) {
    sim_state *state = remotes[remote].state;
    if (gpu >= (int)state->board_count) return -ENODEV;
    const char *text = NULL;
    if (gpu < 0 && strcmp(key, "driver_version") == 0) text = state->driver_version;
    if (gpu >= 0 && strcmp(key, "uuid") == 0) text = state->boards[gpu].uuid;
    if (gpu >= 0 && strcmp(key, "name") == 0) text = state->boards[gpu].spec.name;
    if (gpu >= 0 && strcmp(key, "key") == 0) text = state->boards[gpu].spec.key;
    if (!text) return -ENOENT;
    snprintf(out, 128, "%s", text);
    return 0;
}

EXPORT int memscaler_sim_set_driver_version(int remote, const char *version) {
    sim_state *state = remotes[remote].state;
    snprintf(state->driver_version, sizeof state->driver_version, "%s", version);
    snprintf(state->nvml_version, sizeof state->nvml_version, "13.%s", version);
    return 0;
}

EXPORT int memscaler_sim_memory_bytes(int remote, int gpu, uint64_t *out) {
    *out = remotes[remote].state->boards[gpu].spec.memory_bytes;
    return 0;
}

/* ---- processes ---- */

static sim_process *find_process(sim_dynamic *d, uint32_t pid) {
    for (uint32_t i = 0; i < d->process_count; i++)
        if (d->processes[i].pid == pid) return &d->processes[i];
    return NULL;
}

EXPORT int memscaler_sim_put_process(int remote, int gpu, uint32_t pid, uint64_t bytes, uint32_t sm_percent, uint32_t kind,
                                     const char *name) {
    sim_state *state = remotes[remote].state;
    sim_lock(state);
    sim_dynamic *d = model_edit(&state->boards[gpu]);
    sim_process *process = find_process(d, pid);
    int code = !process && d->process_count == SIM_MAX_PROCESSES ? -ENOSPC : 0;
    if (!code) {
        if (!process) process = &d->processes[d->process_count++];
        *process = (sim_process){.pid = pid, .sm_percent = sm_percent, .graphics = kind, .used_bytes = bytes};
        snprintf(process->name, sizeof process->name, "%s", name);
        model_commit(&state->boards[gpu], d, sim_now_ns());
    }
    sim_unlock(state);
    return code;
}

EXPORT int memscaler_sim_drop_process(int remote, int gpu, uint32_t pid) {
    sim_state *state = remotes[remote].state;
    sim_lock(state);
    sim_dynamic *d = model_edit(&state->boards[gpu]);
    sim_process *process = find_process(d, pid);
    if (process) {
        *process = d->processes[--d->process_count];
        model_commit(&state->boards[gpu], d, sim_now_ns());
        sim_deinitialise_unused(state, remotes[remote].fd);
    }
    sim_unlock(state);
    return process ? 0 : -ESRCH;
}

/* ---- driver and faults ---- */

EXPORT int memscaler_sim_reload(int remote) {
    sim_state *state = remotes[remote].state;
    sim_lock(state);
    for (uint32_t gpu = 0; gpu < state->board_count; gpu++) model_start(&state->boards[gpu], sim_now_ns());
    atomic_fetch_add(&state->generation, 1);
    sim_unlock(state);
    ring(state);
    return 0;
}

EXPORT int memscaler_sim_symbol(const char *name) {
#define CANONICAL(alias, canonical) if (strcmp(name, #alias) == 0) return SYM_##canonical;
    SIM_ALIASES(CANONICAL)
    for (int i = 0; i < SYM_COUNT; i++)
        if (strcmp(name, sim_symbol_names[i]) == 0) return i;
    return -ENOENT;
}

EXPORT const char *memscaler_sim_symbol_name(int id) { return id >= 0 && id < SYM_COUNT ? sim_symbol_names[id] : NULL; }

/* code INT32_MIN: no forced code. times 0: for ever. */
EXPORT int memscaler_sim_inject(int remote, int gpu, int symbol, int code, uint32_t delay_ms, uint32_t hang, uint32_t ignore,
                                uint32_t after, uint32_t times) {
    static _Atomic uint32_t incarnation = 0;
    sim_state *state = remotes[remote].state;
    sim_lock(state);
    int slot = 0;
    while (slot < SIM_MAX_FAULTS && atomic_load(&state->faults[slot].active)) slot++;
    if (slot < SIM_MAX_FAULTS) {
        sim_fault *fault = &state->faults[slot];
        atomic_store(&fault->hits, 0);
        fault->symbol = symbol;
        fault->gpu = gpu;
        fault->code = code;
        fault->delay_ms = delay_ms;
        fault->hang = hang;
        fault->ignore = ignore;
        fault->after = after;
        fault->times = times;
        atomic_store(&fault->active, ((uint32_t)getpid() << 12 | (++incarnation & 0xfff)) | 1u << 31);
        atomic_fetch_add(&state->fault_count, 1);
    }
    sim_unlock(state);
    return slot < SIM_MAX_FAULTS ? slot : -ENOSPC;
}

/* gpu -1: every fault. symbol -1: any symbol. */
EXPORT int memscaler_sim_clear(int remote, int gpu, int symbol) {
    sim_state *state = remotes[remote].state;
    uint32_t left = 0;
    sim_lock(state);
    for (int i = 0; i < SIM_MAX_FAULTS; i++) {
        sim_fault *fault = &state->faults[i];
        int chosen = (gpu < 0 || fault->gpu == gpu) && (symbol < 0 || fault->symbol == symbol);
        if (chosen) atomic_store(&fault->active, 0);
        left += atomic_load(&fault->active) != 0;
    }
    atomic_store(&state->fault_count, left);
    sim_unlock(state);
    return 0;
}

EXPORT int memscaler_sim_event(int remote, int gpu, uint64_t type, uint64_t data) {
    sim_state *state = remotes[remote].state;
    sim_lock(state);
    uint64_t head = atomic_load(&state->event_head);
    sim_event *event = &state->events[head % SIM_MAX_EVENTS];
    *event = (sim_event){.sequence = head + 1, .type = type, .data = data, .gpu = gpu};
    atomic_store(&state->event_head, head + 1);
    sim_unlock(state);
    ring(state);
    return 0;
}

/* ---- log ---- */

/* Copies records numbered above `after`, oldest first; returns how many. */
EXPORT int memscaler_sim_log(int remote, uint64_t after, sim_record *out, int room) {
    sim_state *state = remotes[remote].state;
    uint64_t head = atomic_load(&state->log_head);
    if (head > SIM_LOG_SIZE && after < head - SIM_LOG_SIZE) after = head - SIM_LOG_SIZE;
    int count = 0;
    for (uint64_t number = after + 1; number <= head && count < room; number++) {
        const sim_record *record = &state->log[(number - 1) % SIM_LOG_SIZE];
        if (atomic_load(&((sim_record *)record)->sequence) != number) continue; /* the writer died half-way, or it was overtaken */
        memcpy(&out[count], record, sizeof *record);
        count++;
    }
    return count;
}

EXPORT uint64_t memscaler_sim_log_head(int remote) { return atomic_load(&remotes[remote].state->log_head); }

/* ---- for the layout tests ---- */

#define SIZE(type) if (strcmp(name, #type) == 0) return sizeof(type);
EXPORT unsigned memscaler_sim_sizeof(const char *name) {
    SIZE(nvmlPciInfo_t) SIZE(nvmlMemory_t) SIZE(nvmlMemory_v2_t) SIZE(nvmlUtilization_t) SIZE(nvmlProcessInfo_t)
    SIZE(nvmlProcessInfo_v1_t) SIZE(nvmlEventData_t) SIZE(nvmlFieldValue_t) SIZE(nvmlProcessUtilizationSample_t)
    SIZE(nvmlBAR1Memory_t) SIZE(nvmlTemperature_t) SIZE(sim_record) SIZE(sim_state)
    return 0;
}
