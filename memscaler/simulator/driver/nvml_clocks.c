/* Clocks, P-states and the locks on them. Setters test support, then permission, then arguments (facts/nvml.md 1.2). */
#include "nvml_internal.h"

#include <string.h>

enum { TDP = 0xffffff01u, UNLIMITED = 0xffffff02u };

static int fill(unsigned int *count, unsigned int *out, const unsigned int *values, unsigned int total) {
    if (!count) return NVML_ERROR_INVALID_ARGUMENT;
    int fits = out && *count >= total;
    *count = total;
    if (!fits) return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, values, total * sizeof *values);
    return 0;
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned int *count, unsigned int *clocks) {
    DEVICE_CALL(nvmlDeviceGetSupportedMemoryClocks, device, 0, 0);
    REQUIRE(board->spec.flags & CAN_LIST_CLOCKS, NVML_ERROR_NOT_SUPPORTED);
    unsigned int values[SIM_MAX_STEPS];
    for (uint32_t i = 0; i < board->spec.step_count; i++) values[i] = board->spec.steps[i].memory_mhz;
    return nvml_leave(&call, fill(count, clocks, values, board->spec.step_count));
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t device, unsigned int memory_mhz, unsigned int *count,
                                                         unsigned int *clocks) {
    DEVICE_CALL(nvmlDeviceGetSupportedGraphicsClocks, device, memory_mhz, 0);
    REQUIRE(board->spec.flags & CAN_LIST_CLOCKS, NVML_ERROR_NOT_SUPPORTED);
    const sim_step *step = model_step_of_memory(&board->spec, memory_mhz);
    REQUIRE(step->memory_mhz == memory_mhz, NVML_ERROR_NOT_FOUND);
    unsigned int values[512];
    for (uint32_t i = 0; i < step->graphics_count; i++) values[i] = model_graphics_clock(step, i);
    return nvml_leave(&call, fill(count, clocks, values, step->graphics_count));
}

static int clock_of(nvmlClockType_t type, uint32_t memory, uint32_t graphics, unsigned int *out) {
    if (!out || (unsigned)type >= NVML_CLOCK_COUNT) return NVML_ERROR_INVALID_ARGUMENT;
    *out = type == NVML_CLOCK_MEM ? memory : type == NVML_CLOCK_VIDEO ? graphics * 9 / 10 : graphics;
    return 0;
}

EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    DEVICE_CALL(nvmlDeviceGetClockInfo, device, type, 0);
    sim_view view = nvml_look(&call, board);
    return nvml_leave(&call, clock_of(type, view.memory_mhz, view.graphics_mhz, clock));
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    DEVICE_CALL(nvmlDeviceGetMaxClockInfo, device, type, 0);
    return nvml_leave(&call, clock_of(type, board->spec.steps[0].memory_mhz, board->spec.steps[0].graphics_max_mhz, clock));
}

static int application_clock(sim_call *call, const sim_board *board, nvmlClockType_t type, int set_by_user, unsigned int *out) {
    if (!(board->spec.flags & CAN_APPLICATION_CLOCKS)) return NVML_ERROR_NOT_SUPPORTED;
    sim_dynamic dynamic = nvml_copy(call, board);
    int use = set_by_user && dynamic.application_memory_mhz;
    return clock_of(type, use ? dynamic.application_memory_mhz : board->spec.context_memory_mhz,
                    use ? dynamic.application_graphics_mhz : board->spec.context_graphics_mhz, out);
}

EXPORT nvmlReturn_t nvmlDeviceGetApplicationsClock(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    DEVICE_CALL(nvmlDeviceGetApplicationsClock, device, type, 0);
    return nvml_leave(&call, application_clock(&call, board, type, 1, clock));
}

EXPORT nvmlReturn_t nvmlDeviceGetClock(nvmlDevice_t device, nvmlClockType_t type, nvmlClockId_t id, unsigned int *clock) {
    DEVICE_CALL(nvmlDeviceGetClock, device, type, id);
    sim_view view = nvml_look(&call, board);
    const sim_step *top = &board->spec.steps[0];
    switch (id) {
    case NVML_CLOCK_ID_CURRENT: return nvml_leave(&call, clock_of(type, view.memory_mhz, view.graphics_mhz, clock));
    case NVML_CLOCK_ID_CUSTOMER_BOOST_MAX: return nvml_leave(&call, clock_of(type, top->memory_mhz, top->graphics_max_mhz, clock));
    case NVML_CLOCK_ID_APP_CLOCK_TARGET: return nvml_leave(&call, application_clock(&call, board, type, 1, clock));
    case NVML_CLOCK_ID_APP_CLOCK_DEFAULT: return nvml_leave(&call, application_clock(&call, board, type, 0, clock));
    default: return nvml_leave(&call, NVML_ERROR_INVALID_ARGUMENT);
    }
}

EXPORT nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, nvmlPstates_t *pstate) {
    DEVICE_CALL(nvmlDeviceGetPerformanceState, device, 0, 0);
    REQUIRE(pstate, NVML_ERROR_INVALID_ARGUMENT);
    *pstate = nvml_look(&call, board).pstate;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedPerformanceStates(nvmlDevice_t device, nvmlPstates_t *pstates, unsigned int size) {
    DEVICE_CALL(nvmlDeviceGetSupportedPerformanceStates, device, size, 0);
    REQUIRE(pstates, NVML_ERROR_INVALID_ARGUMENT);
    unsigned int room = size / sizeof *pstates, used = 0;
    for (uint32_t i = 0; i < board->spec.step_count; i++) {
        if (i && board->spec.steps[i].pstate == board->spec.steps[i - 1].pstate) continue;
        REQUIRE(used < room, NVML_ERROR_INSUFFICIENT_SIZE);
        pstates[used++] = board->spec.steps[i].pstate;
    }
    while (used < room) pstates[used++] = NVML_PSTATE_UNKNOWN;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetMinMaxClockOfPState(nvmlDevice_t device, nvmlClockType_t type, nvmlPstates_t pstate,
                                                     unsigned int *low, unsigned int *high) {
    DEVICE_CALL(nvmlDeviceGetMinMaxClockOfPState, device, type, pstate);
    const sim_step *step = model_step_of_pstate(&board->spec, pstate);
    REQUIRE(step, NVML_ERROR_INVALID_ARGUMENT);
    int code = clock_of(type, step->memory_mhz, step->graphics_min_mhz, low);
    return nvml_leave(&call, code ? code : clock_of(type, step->memory_mhz, step->graphics_max_mhz, high));
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons) {
    DEVICE_CALL(nvmlDeviceGetCurrentClocksEventReasons, device, 0, 0);
    REQUIRE(reasons, NVML_ERROR_INVALID_ARGUMENT);
    *reasons = nvml_look(&call, board).event_reasons;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksEventReasons(device, reasons);
}

/* ---- setters ---- */

#define SETTER(symbol, a0, a1, flag)                                                \
    DEVICE_CALL(symbol, device, a0, a1);                                            \
    REQUIRE(board->spec.flags & (flag), NVML_ERROR_NOT_SUPPORTED);                  \
    REQUIRE(call_may_write(call.state), NVML_ERROR_NO_PERMISSION)

/* Edit `d`, a private copy of the board, and put it in force. */
#define CHANGE(...)                                    \
    do {                                               \
        sim_lock(call.state);                          \
        sim_dynamic *d = model_edit(board);            \
        __VA_ARGS__;                                   \
        model_commit(board, d, sim_now_ns());          \
        sim_unlock(call.state);                        \
    } while (0)

EXPORT nvmlReturn_t nvmlDeviceSetMemoryLockedClocks(nvmlDevice_t device, unsigned int low, unsigned int high) {
    SETTER(nvmlDeviceSetMemoryLockedClocks, low, high, CAN_LOCK_MEMORY);
    REQUIRE(high && low <= high, NVML_ERROR_INVALID_ARGUMENT);
    CHANGE(d->memory_lock_min_mhz = model_snap_memory(&board->spec, low),
           d->memory_lock_max_mhz = model_snap_memory(&board->spec, high));
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceResetMemoryLockedClocks(nvmlDevice_t device) {
    SETTER(nvmlDeviceResetMemoryLockedClocks, 0, 0, CAN_LOCK_MEMORY);
    CHANGE(d->memory_lock_min_mhz = d->memory_lock_max_mhz = 0);
    return nvml_leave(&call, 0);
}

static uint32_t graphics_wish(const sim_spec *spec, unsigned int mhz) {
    if (mhz == TDP) return spec->context_graphics_mhz;
    return mhz == UNLIMITED ? spec->steps[0].graphics_max_mhz : model_snap_graphics(spec, mhz);
}

EXPORT nvmlReturn_t nvmlDeviceSetGpuLockedClocks(nvmlDevice_t device, unsigned int low, unsigned int high) {
    SETTER(nvmlDeviceSetGpuLockedClocks, low, high, CAN_LOCK_GRAPHICS);
    REQUIRE((low >= TDP) == (high >= TDP) && high && low <= high && (high < TDP || high <= UNLIMITED), NVML_ERROR_INVALID_ARGUMENT);
    int reset = low == UNLIMITED && high == UNLIMITED;
    CHANGE(d->graphics_lock_min_mhz = reset ? 0 : graphics_wish(&board->spec, low),
           d->graphics_lock_max_mhz = reset ? 0 : graphics_wish(&board->spec, high));
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceResetGpuLockedClocks(nvmlDevice_t device) {
    SETTER(nvmlDeviceResetGpuLockedClocks, 0, 0, CAN_LOCK_GRAPHICS);
    CHANGE(d->graphics_lock_min_mhz = d->graphics_lock_max_mhz = 0);
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceSetApplicationsClocks(nvmlDevice_t device, unsigned int memory_mhz, unsigned int graphics_mhz) {
    SETTER(nvmlDeviceSetApplicationsClocks, memory_mhz, graphics_mhz, CAN_APPLICATION_CLOCKS);
    const sim_step *step = model_step_of_memory(&board->spec, memory_mhz);
    REQUIRE(step->memory_mhz == memory_mhz, NVML_ERROR_INVALID_ARGUMENT);
    uint32_t i = 0;
    while (i < step->graphics_count && model_graphics_clock(step, i) != graphics_mhz) i++;
    REQUIRE(i < step->graphics_count, NVML_ERROR_INVALID_ARGUMENT);
    CHANGE(d->application_memory_mhz = memory_mhz, d->application_graphics_mhz = graphics_mhz);
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceResetApplicationsClocks(nvmlDevice_t device) {
    SETTER(nvmlDeviceResetApplicationsClocks, 0, 0, CAN_APPLICATION_CLOCKS);
    CHANGE(d->application_memory_mhz = d->application_graphics_mhz = 0);
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned int milliwatts) {
    SETTER(nvmlDeviceSetPowerManagementLimit, milliwatts, 0, CAN_READ_POWER);
    REQUIRE(milliwatts >= board->spec.limit_min_mw && milliwatts <= board->spec.limit_max_mw, NVML_ERROR_INVALID_ARGUMENT);
    CHANGE(d->limit_mw = milliwatts);
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t mode) {
    DEVICE_CALL(nvmlDeviceSetPersistenceMode, device, mode, 0);
    REQUIRE(call_may_write(call.state), NVML_ERROR_NO_PERMISSION);
    REQUIRE(mode == NVML_FEATURE_ENABLED || mode == NVML_FEATURE_DISABLED, NVML_ERROR_INVALID_ARGUMENT);
    CHANGE(d->persistence = mode == NVML_FEATURE_ENABLED);
    return nvml_leave(&call, 0);
}
