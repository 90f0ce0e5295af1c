/* Event sets. A waiter sleeps in the kernel on a futex in the shared state: no polling, and any process can ring. */
#define _GNU_SOURCE
#include "nvml_internal.h"

#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_SETS = 64 };
#define SUPPORTED_EVENTS (nvmlEventTypeXidCriticalError | nvmlEventTypeGpuUnavailableError | nvmlEventTypeGpuRecoveryAction)

typedef struct {
    _Atomic int used;
    uint64_t seen; /* number of the last event delivered or skipped */
    uint64_t wanted[SIM_MAX_GPUS];
} event_set;

static event_set sets[MAX_SETS];

static event_set *decode(nvmlEventSet_t set) {
    uintptr_t offset = (uintptr_t)set - (uintptr_t)sets;
    if (offset >= sizeof sets || offset % sizeof sets[0]) return NULL;
    event_set *found = &sets[offset / sizeof sets[0]];
    return atomic_load(&found->used) ? found : NULL;
}

EXPORT nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    GLOBAL_CALL(nvmlEventSetCreate, 0);
    REQUIRE(set, NVML_ERROR_INVALID_ARGUMENT);
    for (int i = 0; i < MAX_SETS; i++) {
        int unused = 0;
        if (!atomic_compare_exchange_strong(&sets[i].used, &unused, 1)) continue;
        memset(sets[i].wanted, 0, sizeof sets[i].wanted);
        sets[i].seen = atomic_load(&call.state->event_head);
        *set = (nvmlEventSet_t)&sets[i];
        return nvml_leave(&call, 0);
    }
    return nvml_leave(&call, NVML_ERROR_INSUFFICIENT_RESOURCES);
}

EXPORT nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    GLOBAL_CALL(nvmlEventSetFree, 0);
    event_set *found = decode(set);
    REQUIRE(found, NVML_ERROR_INVALID_ARGUMENT);
    atomic_store(&found->used, 0);
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    DEVICE_CALL(nvmlDeviceGetSupportedEventTypes, device, 0, 0);
    REQUIRE(types, NVML_ERROR_INVALID_ARGUMENT);
    *types = SUPPORTED_EVENTS;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    DEVICE_CALL(nvmlDeviceRegisterEvents, device, (uint32_t)types, 0);
    event_set *found = decode(set);
    REQUIRE(found, NVML_ERROR_INVALID_ARGUMENT);
    REQUIRE((types & ~(unsigned long long)SUPPORTED_EVENTS) == 0, NVML_ERROR_NOT_SUPPORTED);
    found->wanted[call.gpu] |= types;
    return nvml_leave(&call, 0);
}

/* 0 with an event, GPU_IS_LOST, or TIMEOUT when there is nothing yet. */
static int next_event(sim_state *state, event_set *set, nvmlEventData_t *data) {
    for (uint32_t gpu = 0; gpu < state->board_count; gpu++)
        if (set->wanted[gpu] && model_read(&state->boards[gpu])->lost) return NVML_ERROR_GPU_IS_LOST;
    uint64_t head = atomic_load(&state->event_head);
    if (head > set->seen + SIM_MAX_EVENTS) set->seen = head - SIM_MAX_EVENTS;
    while (set->seen < head) {
        const sim_event *event = &state->events[set->seen++ % SIM_MAX_EVENTS];
        if (event->sequence != set->seen || !(set->wanted[event->gpu] & event->type)) continue;
        *data = (nvmlEventData_t){.device = nvml_handle(event->gpu, -1), .eventType = event->type, .eventData = event->data,
                                  .gpuInstanceId = 0xffffffffu, .computeInstanceId = 0xffffffffu};
        return 0;
    }
    return NVML_ERROR_TIMEOUT;
}

EXPORT nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    GLOBAL_CALL(nvmlEventSetWait_v2, timeout_ms);
    event_set *found = decode(set);
    REQUIRE(found && data, NVML_ERROR_INVALID_ARGUMENT);
    int64_t deadline_ns = sim_now_ns() + timeout_ms * 1000000ll;
    for (;;) {
        uint32_t bell = atomic_load(&call.state->event_bell);
        sim_lock(call.state);
        int code = next_event(call.state, found, data);
        sim_unlock(call.state);
        int64_t left_ns = deadline_ns - sim_now_ns();
        if (code != NVML_ERROR_TIMEOUT || left_ns <= 0) return nvml_leave(&call, code);
        int stale = nvml_ready();
        if (stale) return nvml_leave(&call, stale);
        struct timespec pause = {left_ns / 1000000000, left_ns % 1000000000};
        syscall(SYS_futex, &call.state->event_bell, FUTEX_WAIT, bell, &pause, NULL, 0);
    }
}

EXPORT nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    return nvmlEventSetWait_v2(set, data, timeout_ms);
}
