/* libnvidia-ml.so.1: sessions, handles, the system calls. */
#include "nvml_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum { HANDLE_GENERATIONS = 16 };

sim_session nvml_session = {.mutex = PTHREAD_MUTEX_INITIALIZER, .fd = -1};

/* A handle is an address in here: above 4 GiB like a real one, so that truncation shows, and new after every driver reload. */
static char handles[HANDLE_GENERATIONS][SIM_MAX_GPUS][1 + SIM_MAX_MIG][16];

sim_state *nvml_state(void) { return atomic_load(&nvml_session.state); }

int nvml_ready(void) {
    if (!atomic_load_explicit(&nvml_session.references, memory_order_acquire)) return NVML_ERROR_UNINITIALIZED;
    sim_state *state = nvml_state();
    if (atomic_load(&state->generation) != atomic_load(&nvml_session.generation)) return atomic_load(&state->stale_code);
    return 0;
}

nvmlDevice_t nvml_handle(int gpu, int mig) {
    return (nvmlDevice_t)&handles[atomic_load(&nvml_session.generation) % HANDLE_GENERATIONS][gpu][mig + 1];
}

static int handle_decode(nvmlDevice_t device, int *gpu, int *mig) {
    uintptr_t offset = (uintptr_t)device - (uintptr_t)handles;
    if (offset >= sizeof handles || offset % sizeof handles[0][0][0]) return 0;
    uintptr_t slot = offset / sizeof handles[0][0][0];
    *mig = (int)(slot % (1 + SIM_MAX_MIG)) - 1;
    *gpu = (int)(slot / (1 + SIM_MAX_MIG) % SIM_MAX_GPUS);
    if (slot / (1 + SIM_MAX_MIG) / SIM_MAX_GPUS != atomic_load(&nvml_session.generation) % HANDLE_GENERATIONS) return 0;
    sim_state *state = nvml_state();
    return *gpu < (int)state->board_count && *mig < (int)state->boards[*gpu].spec.mig_instances;
}

int nvml_enter(sim_call *call, enum sim_symbol symbol, nvmlDevice_t device, uint32_t a0, uint32_t a1, sim_board **board) {
    int code = nvml_ready(), gpu, mig;
    if (code) return code;
    sim_state *state = nvml_state();
    if (!handle_decode(device, &gpu, &mig)) return NVML_ERROR_INVALID_ARGUMENT;
    *board = &state->boards[gpu];
    call->mig = mig;
    code = call_begin(call, state, symbol, gpu, a0, a1);
    if (code) return code;
    return model_read(*board)->lost ? NVML_ERROR_GPU_IS_LOST : 0;
}

nvmlReturn_t nvml_leave(sim_call *call, int code) { return (nvmlReturn_t)call_end(call, code); }

sim_view nvml_look(sim_call *call, const sim_board *board) {
    sim_lock(call->state);
    sim_view view = model_view(board, sim_now_ns());
    sim_unlock(call->state);
    return view;
}

sim_dynamic nvml_copy(sim_call *call, const sim_board *board) {
    sim_lock(call->state);
    sim_dynamic copy = *model_read(board);
    sim_unlock(call->state);
    return copy;
}

int nvml_write_text(char *out, unsigned int size, const char *text) {
    if (!out) return NVML_ERROR_INVALID_ARGUMENT;
    if (size < strlen(text) + 1) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(out, text);
    return 0;
}

/* ---- session ---- */

static int initialise(void) {
    sim_call call = {0};
    int code = session_attach(&nvml_session);
    if (code) return code == SESSION_WRONG_VERSION ? NVML_ERROR_LIB_RM_VERSION_MISMATCH : NVML_ERROR_DRIVER_NOT_LOADED;
    code = call_begin(&call, nvml_state(), SYM_nvmlInitWithFlags, -1, 0, 0);
    if (!code) code = atomic_load(&nvml_state()->init_code);
    if (!code && session_open(&nvml_session)) code = NVML_ERROR_DRIVER_NOT_LOADED;
    if (code && !atomic_load(&nvml_session.references) && nvml_session.fd >= 0) {
        close(nvml_session.fd);
        nvml_session.fd = -1;
    }
    return nvml_leave(&call, code);
}

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    pthread_mutex_lock(&nvml_session.mutex);
    int code = initialise();
    pthread_mutex_unlock(&nvml_session.mutex);
    return code;
}

EXPORT nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT nvmlReturn_t nvmlInit(void) { return nvmlInitWithFlags(0); }

EXPORT nvmlReturn_t nvmlShutdown(void) {
    sim_call call = {0};
    pthread_mutex_lock(&nvml_session.mutex);
    int code = NVML_ERROR_UNINITIALIZED;
    if (atomic_load(&nvml_session.references)) {
        code = call_begin(&call, nvml_state(), SYM_nvmlShutdown, -1, 0, 0);
        if (!code) session_release(&nvml_session);
    }
    pthread_mutex_unlock(&nvml_session.mutex);
    return nvml_leave(&call, code);
}

EXPORT const char *nvmlErrorString(nvmlReturn_t result) {
    static const char *const texts[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions", "Already Initialized",
        "Not Found", "Insufficient Size", "Insufficient External Power", "Driver Not Loaded", "Timeout",
        "Interrupt Request Issue", "NVML Shared Library Not Found", "Function Not Found", "Corrupted infoROM", "GPU is lost",
        "GPU requires reset", "The operating system has blocked the request.", "Driver/library version mismatch",
        "In use by another client", "Insufficient Memory", "No data",
        "The requested vgpu operation is not available on target device, because ECC is enabled",
        "Insufficient Resources", "Frequency not supported", "Argument version mismatch", "Deprecated", "Not ready",
        "No GPUs were found", "Invalid state", "Reset type not supported"};
    return (unsigned)result < sizeof texts / sizeof texts[0] ? texts[result] : "Unknown Error";
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    GLOBAL_CALL(nvmlSystemGetDriverVersion, 0);
    return nvml_leave(&call, nvml_write_text(version, length, call.state->driver_version));
}

EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    GLOBAL_CALL(nvmlSystemGetNVMLVersion, 0);
    return nvml_leave(&call, nvml_write_text(version, length, call.state->nvml_version));
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    GLOBAL_CALL(nvmlSystemGetCudaDriverVersion, 0);
    REQUIRE(version, NVML_ERROR_INVALID_ARGUMENT);
    *version = (int)call.state->cuda_version;
    return nvml_leave(&call, 0);
}

/* ---- handles ---- */

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    GLOBAL_CALL(nvmlDeviceGetCount_v2, 0);
    REQUIRE(count, NVML_ERROR_INVALID_ARGUMENT);
    *count = call.state->board_count;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetCount(unsigned int *count) { return nvmlDeviceGetCount_v2(count); }

/* Faults and a lost board count for looking a handle up, too. */
static int find(enum sim_symbol symbol, int gpu, int mig, nvmlDevice_t *device) {
    sim_call call = {0};
    int code = call_begin(&call, nvml_state(), symbol, gpu, gpu < 0 ? 0 : (uint32_t)gpu, 0);
    if (!code && gpu < 0) code = gpu == -2 ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_NOT_FOUND;
    if (!code && model_read(&nvml_state()->boards[gpu])->lost) code = NVML_ERROR_GPU_IS_LOST;
    if (!code && !call.ignore) *device = nvml_handle(gpu, mig);
    return nvml_leave(&call, code);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    int code = nvml_ready();
    if (code) return code;
    int known = device && index < nvml_state()->board_count;
    return find(SYM_nvmlDeviceGetHandleByIndex_v2, known ? (int)index : -2, -1, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    int code = nvml_ready(), gpu = -1, mig = -1;
    if (code) return code;
    if (!uuid || !device) return NVML_ERROR_INVALID_ARGUMENT;
    sim_state *state = nvml_state();
    char text[64];
    for (int i = 0; i < (int)state->board_count; i++) {
        if (strcasecmp(uuid, state->boards[i].uuid) == 0) gpu = i;
        for (int part = 0; part < (int)state->boards[i].spec.mig_instances; part++) {
            snprintf(text, sizeof text, "MIG-%d%s", part, state->boards[i].uuid + 5);
            if (strcasecmp(uuid, text) == 0) gpu = i, mig = part;
        }
    }
    return find(SYM_nvmlDeviceGetHandleByUUID, gpu, mig, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *text, nvmlDevice_t *device) {
    int code = nvml_ready(), gpu = -1;
    if (code) return code;
    if (!text || !device) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned domain = 0, bus, slot, function = 0;
    if (sscanf(text, "%x:%x:%x.%x", &domain, &bus, &slot, &function) < 3) {
        domain = 0;
        if (sscanf(text, "%x:%x.%x", &bus, &slot, &function) < 2) return NVML_ERROR_INVALID_ARGUMENT;
    }
    sim_state *state = nvml_state();
    for (int i = 0; i < (int)state->board_count; i++)
        if (state->boards[i].pci_domain == domain && state->boards[i].pci_bus == bus && slot == 0 && function == 0) gpu = i;
    return find(SYM_nvmlDeviceGetHandleByPciBusId_v2, gpu, -1, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *text, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByPciBusId_v2(text, device);
}
