/* Processes on a board. `_v3` writes 24-byte records: nvmlDeviceGetConfComputeMemSizeInfo and nvmlDeviceGetRunningProcessDetailList
 * are both absent on purpose, because nvitop reads 32-byte records where it finds only the first of them. */
#include "nvml_internal.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static int select_processes(const sim_dynamic *d, int graphics, const sim_process **out) {
    int found = 0;
    for (uint32_t i = 0; i < d->process_count; i++)
        if ((int)d->processes[i].graphics == graphics) out[found++] = &d->processes[i];
    return found;
}

/* Set the count, and say whether the records may be written. */
static int room_for(unsigned int *count, const void *records, unsigned int total) {
    if (!count) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned int room = *count;
    *count = total;
    return total > 0 && (!records || room < total) ? NVML_ERROR_INSUFFICIENT_SIZE : 0;
}

static int list(sim_call *call, const sim_board *board, int graphics, unsigned int *count, nvmlProcessInfo_t *infos) {
    const sim_process *chosen[SIM_MAX_PROCESSES];
    sim_dynamic dynamic = nvml_copy(call, board);
    int total = board->spec.mig_instances ? 0 : select_processes(&dynamic, graphics, chosen);
    int code = room_for(count, infos, (unsigned)total);
    for (int i = 0; !code && i < total; i++)
        infos[i] = (nvmlProcessInfo_t){chosen[i]->pid, chosen[i]->used_bytes, 0xffffffffu, 0xffffffffu};
    return code;
}

#define PROCESS_LIST(symbol, graphics)                                                                          \
    EXPORT nvmlReturn_t symbol(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos) {            \
        ANY_DEVICE_CALL(symbol, device, 0, 0);                                                                  \
        return nvml_leave(&call, list(&call, board, graphics, count, infos));                                   \
    }

PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v3, 0)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, 1)
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, 2)

EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v2_t *infos) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, (nvmlProcessInfo_t *)infos);
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v1_t *infos) {
    nvmlProcessInfo_t wide[SIM_MAX_PROCESSES];
    unsigned int room = count ? *count : 0, total = SIM_MAX_PROCESSES;
    nvmlReturn_t code = nvmlDeviceGetComputeRunningProcesses_v3(device, count ? &total : NULL, wide);
    if (code) return code;
    *count = total;
    if (total > 0 && (!infos || room < total)) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < total; i++) infos[i] = (nvmlProcessInfo_v1_t){wide[i].pid, wide[i].usedGpuMemory};
    return 0;
}

EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples,
                                                    unsigned int *count, unsigned long long last_seen_us) {
    DEVICE_CALL(nvmlDeviceGetProcessUtilization, device, 0, 0);
    REQUIRE(!board->spec.mig_instances, NVML_ERROR_NOT_SUPPORTED);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    unsigned long long now_us = (unsigned long long)now.tv_sec * 1000000 + (unsigned)now.tv_nsec / 1000;
    sim_dynamic dynamic = nvml_copy(&call, board);
    unsigned int total = dynamic.process_count;
    REQUIRE(count && total && last_seen_us < now_us, count ? NVML_ERROR_NOT_FOUND : NVML_ERROR_INVALID_ARGUMENT);
    int code = room_for(count, samples, total);
    for (unsigned int i = 0; !code && i < total; i++)
        samples[i] = (nvmlProcessUtilizationSample_t){.pid = dynamic.processes[i].pid, .timeStamp = now_us,
                                                      .smUtil = dynamic.processes[i].sm_percent};
    return nvml_leave(&call, code);
}

EXPORT nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length) {
    GLOBAL_CALL(nvmlSystemGetProcessName, pid);
    REQUIRE(name && length, NVML_ERROR_INVALID_ARGUMENT);
    for (uint32_t gpu = 0; gpu < call.state->board_count; gpu++) {
        sim_dynamic dynamic = nvml_copy(&call, &call.state->boards[gpu]);
        for (uint32_t i = 0; i < dynamic.process_count; i++)
            if (dynamic.processes[i].pid == pid && dynamic.processes[i].name[0]) {
                snprintf(name, length, "%s", dynamic.processes[i].name);
                return nvml_leave(&call, 0);
            }
    }
    char path[32];
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "re");
    REQUIRE(file, NVML_ERROR_NOT_FOUND);
    size_t read = fread(name, 1, length - 1, file);
    fclose(file);
    name[read] = 0;
    return nvml_leave(&call, 0);
}
