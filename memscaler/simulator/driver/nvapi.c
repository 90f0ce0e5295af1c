/* libnvidia-api.so.1: one export, nvapi_QueryInterface, and the few functions behind it. Ids and prototypes: facts/nvml.md 2 and
 * facts/peers.md 3a. SetForcePstate needs no root on a real driver (nvidia-pstated runs with DynamicUser=yes). */
#include <string.h>
#include <unistd.h>

#include "calls.h"
#include "model.h"

enum { OK = 0, ERROR = -1, NOT_INITIALIZED = -4, INVALID_ARGUMENT = -5, DEVICE_NOT_FOUND = -6, INVALID_HANDLE = -8,
       INCOMPATIBLE_STRUCT_VERSION = -9, HANDLE_INVALIDATED = -10, NOT_SUPPORTED = -104, INVALID_PERF_LEVEL = -107,
       INVALID_USER_PRIVILEGE = -137 };
enum { HANDLE_GENERATIONS = 16, MAX_HANDLES = 64 };

static sim_session session = {.mutex = PTHREAD_MUTEX_INITIALIZER, .fd = -1};
static char handles[HANDLE_GENERATIONS][SIM_MAX_GPUS][16];

static int ready(void) {
    if (!atomic_load(&session.references)) return NOT_INITIALIZED;
    sim_state *state = atomic_load(&session.state);
    return atomic_load(&state->generation) == atomic_load(&session.generation) ? OK : HANDLE_INVALIDATED;
}

static int enter(sim_call *call, enum sim_symbol symbol, void *handle, uint32_t a0, uint32_t a1, sim_board **board) {
    int code = ready();
    if (code) return code;
    sim_state *state = atomic_load(&session.state);
    uintptr_t offset = (uintptr_t)handle - (uintptr_t)handles, slot = offset / sizeof handles[0][0];
    if (offset >= sizeof handles || offset % sizeof handles[0][0] || slot % SIM_MAX_GPUS >= state->board_count) return INVALID_HANDLE;
    if (slot / SIM_MAX_GPUS != atomic_load(&session.generation) % HANDLE_GENERATIONS) return HANDLE_INVALIDATED;
    *board = &state->boards[slot % SIM_MAX_GPUS];
    code = call_begin(call, state, symbol, (int)(slot % SIM_MAX_GPUS), a0, a1);
    return code ? code : model_read(*board)->lost ? HANDLE_INVALIDATED : OK;
}

#define GPU_CALL(symbol, a0, a1)                                              \
    sim_call call = {0};                                                      \
    sim_board *board = NULL;                                                  \
    int entered = enter(&call, SYM_##symbol, handle, a0, a1, &board);         \
    if (entered || call.ignore) return call_end(&call, entered)

static int initialize_locked(void) {
    sim_call call = {0};
    if (session_attach(&session)) return ERROR;
    sim_state *state = atomic_load(&session.state);
    int code = call_begin(&call, state, SYM_NvAPI_Initialize, -1, 0, 0);
    if (!code && atomic_load(&state->init_code)) code = ERROR; /* as seen on a user/kernel version mismatch */
    if (!code && session_open(&session)) code = ERROR;
    if (code && !atomic_load(&session.references) && session.fd >= 0) {
        close(session.fd);
        session.fd = -1;
    }
    return call_end(&call, code);
}

static int NvAPI_Initialize(void) {
    pthread_mutex_lock(&session.mutex);
    int code = initialize_locked();
    pthread_mutex_unlock(&session.mutex);
    return code;
}

static int NvAPI_Unload(void) {
    sim_call call = {0};
    pthread_mutex_lock(&session.mutex);
    int code = NOT_INITIALIZED;
    if (atomic_load(&session.references)) {
        code = call_begin(&call, atomic_load(&session.state), SYM_NvAPI_Unload, -1, 0, 0);
        if (!code) session_release(&session);
    }
    pthread_mutex_unlock(&session.mutex);
    return call_end(&call, code);
}

static int NvAPI_GetErrorMessage(int status, char text[64]) {
    static const struct { int status; const char *text; } known[] = {
        {OK, "NVAPI_OK"}, {ERROR, "NVAPI_ERROR"}, {-2, "NVAPI_LIBRARY_NOT_FOUND"}, {-3, "NVAPI_NO_IMPLEMENTATION"},
        {NOT_INITIALIZED, "NVAPI_API_NOT_INITIALIZED"}, {INVALID_ARGUMENT, "NVAPI_INVALID_ARGUMENT"},
        {DEVICE_NOT_FOUND, "NVAPI_NVIDIA_DEVICE_NOT_FOUND"}, {INVALID_HANDLE, "NVAPI_INVALID_HANDLE"},
        {INCOMPATIBLE_STRUCT_VERSION, "NVAPI_INCOMPATIBLE_STRUCT_VERSION"}, {HANDLE_INVALIDATED, "NVAPI_HANDLE_INVALIDATED"},
        {-14, "NVAPI_INVALID_POINTER"}, {NOT_SUPPORTED, "NVAPI_NOT_SUPPORTED"}, {INVALID_PERF_LEVEL, "NVAPI_INVALID_PERF_LEVEL"},
        {-108, "NVAPI_DEVICE_BUSY"}, {INVALID_USER_PRIVILEGE, "NVAPI_INVALID_USER_PRIVILEGE"}};
    if (!text) return INVALID_ARGUMENT;
    memset(text, 0, 64);
    strcpy(text, "NVAPI_ERROR");
    for (unsigned i = 0; i < sizeof known / sizeof known[0]; i++)
        if (known[i].status == status) strcpy(text, known[i].text);
    return OK;
}

static int NvAPI_EnumPhysicalGPUs(void *out[MAX_HANDLES], uint32_t *count) {
    sim_call call = {0};
    int code = ready();
    if (code) return code;
    if (!out || !count) return INVALID_ARGUMENT;
    sim_state *state = atomic_load(&session.state);
    code = call_begin(&call, state, SYM_NvAPI_EnumPhysicalGPUs, -1, 0, 0);
    if (code) return call_end(&call, code);
    uint32_t found = 0;
    for (uint32_t i = 0; i < state->board_count; i++) {
        uint32_t gpu = state->nvapi_reversed ? state->board_count - 1 - i : i;
        if (model_read(&state->boards[gpu])->lost) continue;
        out[found++] = &handles[atomic_load(&session.generation) % HANDLE_GENERATIONS][gpu];
    }
    *count = found;
    return call_end(&call, found ? OK : DEVICE_NOT_FOUND);
}

/* The bus number only: two boards on different PCI domains may share it. */
static int NvAPI_GPU_GetBusId(void *handle, uint32_t *bus) {
    GPU_CALL(NvAPI_GPU_GetBusId, 0, 0);
    if (bus) *bus = board->pci_bus;
    return call_end(&call, bus ? OK : INVALID_ARGUMENT);
}

static int NvAPI_GPU_GetBusSlotId(void *handle, uint32_t *slot) {
    GPU_CALL(NvAPI_GPU_GetBusSlotId, 0, 0);
    if (slot) *slot = 0;
    return call_end(&call, slot ? OK : INVALID_ARGUMENT);
}

static int NvAPI_GPU_GetCurrentPstate(void *handle, uint32_t *pstate) {
    GPU_CALL(NvAPI_GPU_GetCurrentPstate, 0, 0);
    if (!pstate) return call_end(&call, INVALID_ARGUMENT);
    sim_lock(call.state);
    *pstate = model_view(board, sim_now_ns()).pstate;
    sim_unlock(call.state);
    return call_end(&call, OK);
}

/* `fallback`: 0 = error where the board lacks the state, 1 = next higher performance, 2 = next lower. */
static int resolve_pstate(const sim_spec *spec, uint32_t wanted, uint32_t fallback, uint32_t *chosen) {
    *chosen = wanted;
    if (wanted == PSTATE_AUTOMATIC || model_step_of_pstate(spec, wanted)) return OK;
    if (fallback == 0) return INVALID_PERF_LEVEL;
    for (int step = fallback == 1 ? -1 : 1, pstate = (int)wanted; pstate >= 0 && pstate < PSTATE_AUTOMATIC; pstate += step)
        if (model_step_of_pstate(spec, (uint32_t)pstate)) {
            *chosen = (uint32_t)pstate;
            return OK;
        }
    return INVALID_PERF_LEVEL;
}

static int NvAPI_GPU_SetForcePstate(void *handle, uint32_t pstate, uint32_t fallback) {
    GPU_CALL(NvAPI_GPU_SetForcePstate, pstate, fallback);
    uint32_t chosen;
    if (board->spec.nvapi_refusal) return call_end(&call, board->spec.nvapi_refusal);
    if (atomic_load(&call.state->permission) == PERMISSION_DENY) return call_end(&call, INVALID_USER_PRIVILEGE);
    if (pstate > PSTATE_AUTOMATIC || fallback > 2) return call_end(&call, INVALID_ARGUMENT);
    int code = resolve_pstate(&board->spec, pstate, fallback, &chosen);
    if (code) return call_end(&call, code);
    sim_lock(call.state);
    sim_dynamic *edited = model_edit(board);
    edited->forced_pstate = chosen;
    model_commit(board, edited, sim_now_ns());
    sim_unlock(call.state);
    return call_end(&call, OK);
}

/* NV_GPU_PERF_PSTATES20_INFO as in NVIDIA's nvapi.h; version 1 ends before the over-voltage block. */
typedef struct { int32_t value, low, high; } pstates20_delta;
typedef struct {
    uint32_t domain, type, editable;
    pstates20_delta delta;
    uint32_t khz_low, khz_high, voltage_domain, microvolt_low, microvolt_high;
} pstates20_clock;
typedef struct { uint32_t domain, editable, microvolt; pstates20_delta delta; } pstates20_voltage;
typedef struct {
    uint32_t pstate, editable;
    pstates20_clock clocks[8];
    pstates20_voltage voltages[4];
} pstates20_state;
typedef struct {
    uint32_t version, editable, pstate_count, clock_count, voltage_count;
    pstates20_state pstates[16];
} pstates20_v1;
_Static_assert(sizeof(pstates20_v1) == 0x1c94, "NV_GPU_PERF_PSTATES20_INFO_V1");

static int NvAPI_GPU_GetPstates20(void *handle, pstates20_v1 *info) {
    GPU_CALL(NvAPI_GPU_GetPstates20, 0, 0);
    if (!info) return call_end(&call, INVALID_ARGUMENT);
    uint32_t version = info->version;
    if (version != 0x11c94 && version != 0x21cf8 && version != 0x31cf8) return call_end(&call, INCOMPATIBLE_STRUCT_VERSION);
    memset(info, 0, sizeof *info);
    info->version = version;
    info->clock_count = 2;
    for (uint32_t i = 0; i < board->spec.step_count; i++) {
        const sim_step *step = &board->spec.steps[i];
        if (i && step->pstate == step[-1].pstate) continue;
        pstates20_state *state = &info->pstates[info->pstate_count++];
        state->pstate = step->pstate;
        state->clocks[0] = (pstates20_clock){.domain = 0, .type = 1, .khz_low = step->graphics_min_mhz * 1000,
                                             .khz_high = step->graphics_max_mhz * 1000};
        state->clocks[1] = (pstates20_clock){.domain = 4, .type = 0, .khz_low = step->memory_mhz * 1000};
    }
    return call_end(&call, OK);
}

EXPORT void *nvapi_QueryInterface(uint32_t id) {
    switch (id) {
    case 0x0150e828: return (void *)NvAPI_Initialize;
    case 0xd22bdd7e: return (void *)NvAPI_Unload;
    case 0x6c2d048c: return (void *)NvAPI_GetErrorMessage;
    case 0xe5ac921f: return (void *)NvAPI_EnumPhysicalGPUs;
    case 0x1be0b8e5: return (void *)NvAPI_GPU_GetBusId;
    case 0x2a0a350f: return (void *)NvAPI_GPU_GetBusSlotId;
    case 0x927da4f6: return (void *)NvAPI_GPU_GetCurrentPstate;
    case 0x6ff81213: return (void *)NvAPI_GPU_GetPstates20;
    case 0x025bfb10: return (void *)NvAPI_GPU_SetForcePstate;
    default: return NULL;
    }
}
