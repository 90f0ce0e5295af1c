/* The one truth: a fixed-layout file mapped by every process that talks to the simulated driver.
 *
 * Consistency against SIGKILL at any instant: what a call may change lives in `sim_dynamic`, of which a board has two copies. A
 * writer holds the robust mutex, edits the copy that nobody reads, then flips `current` in one store. A holder that dies leaves the
 * old copy in force; the next one gets EOWNERDEAD and carries on. Everything outside of `sim_dynamic` is a single word, or a record
 * whose sequence number or `active` flag is written last. */
#ifndef SIM_STATE_H
#define SIM_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define SIM_MAGIC 0x31304d4953534d00ull
#define SIM_VERSION 1u
#define SIM_ENV "MEMSCALER_SIM_STATE"
#define SIM_CLIENT_BYTE ((off_t)1 << 40) /* byte of the file on which every client holds a shared open-file lock */

enum { SIM_MAX_GPUS = 16, SIM_MAX_STEPS = 8, SIM_MAX_PROCESSES = 16, SIM_MAX_SEGMENTS = 32 };
enum { SIM_MAX_FAULTS = 64, SIM_MAX_EVENTS = 64, SIM_LOG_SIZE = 16384, SIM_MAX_MIG = 7 };

/* What a board can do; a call whose bit is missing answers NOT_SUPPORTED. */
enum sim_flag {
    CAN_LOCK_MEMORY = 1 << 0,
    CAN_LOCK_GRAPHICS = 1 << 1,
    CAN_APPLICATION_CLOCKS = 1 << 2,
    CAN_COUNT_ENERGY = 1 << 3,  /* Volta and newer */
    CAN_LIST_CLOCKS = 1 << 4,
    CAN_READ_POWER = 1 << 5,
    AVERAGES_POWER = 1 << 6,    /* one-second average: Ampere and newer, not GA100 */
    DROPS_WHEN_IDLE = 1 << 7,   /* clocks fall by themselves although a context is resident */
    ANSWERS_MCLK = 1 << 8,      /* NVML fields 298 and 299 */
    HAS_FAN = 1 << 9,
    SHOWS_DISPLAY = 1 << 10,    /* a screen hangs on it */
};

enum { PERMISSION_EUID = 0, PERMISSION_ALLOW = 1, PERMISSION_DENY = 2 };
enum { PSTATE_AUTOMATIC = 16 };

/* One memory clock and what comes with it. graphics clocks: `graphics_count` values, evenly spaced from max down to min. */
typedef struct {
    uint32_t memory_mhz, pstate, graphics_max_mhz, graphics_min_mhz, graphics_count;
} sim_step;

typedef struct {
    char key[16], name[64];
    uint64_t memory_bytes;
    uint32_t architecture, brand, cc_major, cc_minor, pci_device_id, pci_subsystem_id;
    uint32_t step_count;
    sim_step steps[SIM_MAX_STEPS]; /* highest memory clock first */
    uint32_t context_memory_mhz, context_graphics_mhz, idle_graphics_mhz;
    uint32_t bare_mw, context_mw, parked_mw, active_mw;
    uint32_t memory_share_permille; /* part of (context - parked) that goes with the memory clock */
    uint32_t limit_min_mw, limit_default_mw, limit_max_mw;
    uint32_t flags, mclk_switch_type, mclk_min_interval_ms, virtualization, mig_instances;
    int32_t nvapi_refusal; /* what SetForcePstate answers where it does not work; 0 = it works */
} sim_spec;

typedef struct {
    uint32_t pid, sm_percent, graphics, pad;
    uint64_t used_bytes;
    char name[64];
} sim_process;

/* Power in force from `start_ns` until the next segment starts. */
typedef struct {
    int64_t start_ns;
    uint64_t mw;
} sim_segment;

typedef struct {
    uint32_t memory_lock_min_mhz, memory_lock_max_mhz;     /* 0 = no lock */
    uint32_t graphics_lock_min_mhz, graphics_lock_max_mhz; /* 0 = no lock */
    uint32_t application_memory_mhz, application_graphics_mhz;
    uint32_t forced_pstate, persistence, utilization_percent, memory_utilization_percent;
    uint32_t limit_mw, temperature_c, lost, context, process_count, segment_count;
    uint64_t context_bytes;
    uint32_t memory_from_mhz, memory_to_mhz, graphics_from_mhz, graphics_to_mhz;
    int64_t switch_ns, last_mclk_ns;
    uint64_t mclk_too_soon; /* memory switches closer together than field 299 allows */
    int64_t energy_ns;
    double energy_mj; /* up to energy_ns; what came after follows from the segments */
    sim_segment segments[SIM_MAX_SEGMENTS];
    sim_process processes[SIM_MAX_PROCESSES];
} sim_dynamic;

typedef struct {
    sim_spec spec;
    char uuid[48], serial[16];
    uint32_t pci_domain, pci_bus, initial_persistence;
    _Atomic uint32_t settle_park_us, settle_wake_us, current;
    sim_dynamic dynamic[2];
} sim_board;

typedef struct {
    _Atomic uint32_t active, hits;
    int32_t symbol, gpu; /* -1 = any */
    int32_t code;        /* INT32_MIN = the call does its work */
    uint32_t delay_ms, hang, ignore, after, times;
} sim_fault;

typedef struct {
    _Atomic uint64_t sequence; /* 1-based number of the call whose record this is; 0 = empty */
    int64_t entry_ns, return_ns;
    uint32_t pid, tid;
    int32_t symbol, gpu;
    uint32_t argument0, argument1;
    int32_t code;
    uint32_t finished;
} sim_record;

typedef struct {
    uint64_t sequence, type, data;
    int32_t gpu, pad;
} sim_event;

typedef struct {
    _Atomic uint64_t magic;
    uint32_t version, size;
    char boot[40]; /* of the machine: the times in here and a dead lock holder mean nothing after a reboot */
    pthread_mutex_t mutex;
    uint32_t board_count, nvapi_reversed, cuda_version;
    char driver_version[32], nvml_version[32];
    _Atomic int32_t init_code, stale_code;
    _Atomic uint32_t generation, permission, answers_mclk, log_everything, setter_latency_us, getter_latency_us;
    _Atomic uint32_t fault_count, event_bell;
    _Atomic uint64_t event_head, log_head;
    sim_board boards[SIM_MAX_GPUS];
    sim_fault faults[SIM_MAX_FAULTS];
    sim_event events[SIM_MAX_EVENTS];
    sim_record log[SIM_LOG_SIZE];
} sim_state;

int64_t sim_now_ns(void);
void sim_sleep_ns(int64_t ns);
void sim_boot_id(char out[40]);

/* Map an existing state file. Returns the descriptor, or -errno; -EPROTO when it is not a state of this version and boot. */
int sim_map(const char *path, sim_state **out);
void sim_lock(sim_state *state);
void sim_unlock(sim_state *state);

int sim_client_open(sim_state *state, int fd);   /* become a client of the driver */
void sim_client_close(sim_state *state, int *fd); /* stop being one; the last one out deinitialises */
void sim_deinitialise_unused(sim_state *state, int fd);

#endif
