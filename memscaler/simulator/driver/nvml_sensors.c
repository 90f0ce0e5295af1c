/* Power, energy, utilisation, temperature, memory. */
#include "nvml_internal.h"

#include <string.h>
#include <time.h>

static unsigned int power_reading(const sim_board *board, const sim_view *view) {
    return board->spec.flags & AVERAGES_POWER ? view->average_mw : view->power_mw;
}

/* One value read from the board's present state `view`. */
#define READING(symbol, type, flag, value)                                              \
    EXPORT nvmlReturn_t symbol(nvmlDevice_t device, type *out) {                        \
        DEVICE_CALL(symbol, device, 0, 0);                                              \
        REQUIRE((board->spec.flags & (flag)) == (flag), NVML_ERROR_NOT_SUPPORTED);      \
        REQUIRE(out, NVML_ERROR_INVALID_ARGUMENT);                                      \
        sim_view view = nvml_look(&call, board);                                        \
        (void)view;                                                                     \
        *out = (value);                                                                 \
        return nvml_leave(&call, 0);                                                    \
    }

READING(nvmlDeviceGetPowerUsage, unsigned int, CAN_READ_POWER, power_reading(board, &view))
READING(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, CAN_COUNT_ENERGY, (unsigned long long)view.energy_mj)
READING(nvmlDeviceGetPowerManagementLimit, unsigned int, CAN_READ_POWER, nvml_copy(&call, board).limit_mw)
READING(nvmlDeviceGetEnforcedPowerLimit, unsigned int, CAN_READ_POWER, nvml_copy(&call, board).limit_mw)
READING(nvmlDeviceGetFanSpeed, unsigned int, HAS_FAN, view.power_mw > 60000 ? 45 : 0)
READING(nvmlDeviceGetPersistenceMode, nvmlEnableState_t, 0, nvml_copy(&call, board).persistence)

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *low, unsigned int *high) {
    DEVICE_CALL(nvmlDeviceGetPowerManagementLimitConstraints, device, 0, 0);
    REQUIRE(board->spec.flags & CAN_READ_POWER, NVML_ERROR_NOT_SUPPORTED);
    REQUIRE(low && high, NVML_ERROR_INVALID_ARGUMENT);
    *low = board->spec.limit_min_mw;
    *high = board->spec.limit_max_mw;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *out) {
    DEVICE_CALL(nvmlDeviceGetUtilizationRates, device, 0, 0);
    REQUIRE(!board->spec.mig_instances, NVML_ERROR_NOT_SUPPORTED);
    REQUIRE(out, NVML_ERROR_INVALID_ARGUMENT);
    sim_view view = nvml_look(&call, board);
    *out = (nvmlUtilization_t){view.utilization_percent, view.memory_utilization_percent};
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *celsius) {
    DEVICE_CALL(nvmlDeviceGetTemperature, device, sensor, 0);
    REQUIRE(celsius && sensor == NVML_TEMPERATURE_GPU, NVML_ERROR_INVALID_ARGUMENT);
    *celsius = nvml_copy(&call, board).temperature_c;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *out) {
    DEVICE_CALL(nvmlDeviceGetTemperatureV, device, 0, 0);
    REQUIRE(out, NVML_ERROR_INVALID_ARGUMENT);
    REQUIRE(out->version == nvmlTemperature_v1, NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    REQUIRE(out->sensorType == NVML_TEMPERATURE_GPU, NVML_ERROR_INVALID_ARGUMENT);
    out->temperature = (int)nvml_copy(&call, board).temperature_c;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *out) {
    ANY_DEVICE_CALL(nvmlDeviceGetMemoryInfo, device, 0, 0);
    REQUIRE(out, NVML_ERROR_INVALID_ARGUMENT);
    sim_view view = nvml_look(&call, board);
    *out = (nvmlMemory_t){board->spec.memory_bytes, board->spec.memory_bytes - view.used_bytes, view.used_bytes};
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *out) {
    ANY_DEVICE_CALL(nvmlDeviceGetMemoryInfo_v2, device, 0, 0);
    REQUIRE(out, NVML_ERROR_INVALID_ARGUMENT);
    REQUIRE(out->version == nvmlMemory_v2, NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    sim_view view = nvml_look(&call, board);
    uint64_t reserved = board->spec.memory_bytes >> 8;
    out->total = board->spec.memory_bytes;
    out->reserved = reserved;
    out->used = view.used_bytes - reserved;
    out->free = out->total - view.used_bytes;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *out) {
    DEVICE_CALL(nvmlDeviceGetBAR1MemoryInfo, device, 0, 0);
    REQUIRE(out, NVML_ERROR_INVALID_ARGUMENT);
    unsigned long long total = 64ull << 30, used = 4ull << 20;
    *out = (nvmlBAR1Memory_t){.bar1Total = total, .bar1Free = total - used, .bar1Used = used};
    return nvml_leave(&call, 0);
}

#define CODEC(symbol)                                                                                  \
    EXPORT nvmlReturn_t symbol(nvmlDevice_t device, unsigned int *percent, unsigned int *period_us) {  \
        DEVICE_CALL(symbol, device, 0, 0);                                                             \
        REQUIRE(percent && period_us, NVML_ERROR_INVALID_ARGUMENT);                                    \
        *percent = 0;                                                                                  \
        *period_us = 167000;                                                                           \
        return nvml_leave(&call, 0);                                                                   \
    }

CODEC(nvmlDeviceGetEncoderUtilization)
CODEC(nvmlDeviceGetDecoderUtilization)

EXPORT nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned int *kb_per_s) {
    DEVICE_CALL(nvmlDeviceGetPcieThroughput, device, counter, 0);
    REQUIRE(kb_per_s && (unsigned)counter < NVML_PCIE_UTIL_COUNT, NVML_ERROR_INVALID_ARGUMENT);
    *kb_per_s = nvml_look(&call, board).utilization_percent * 1000;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t kind, nvmlEccCounterType_t counter,
                                                unsigned long long *count) {
    DEVICE_CALL(nvmlDeviceGetTotalEccErrors, device, kind, counter);
    REQUIRE(!(board->spec.flags & HAS_FAN), NVML_ERROR_NOT_SUPPORTED);
    REQUIRE(count, NVML_ERROR_INVALID_ARGUMENT);
    *count = 0;
    return nvml_leave(&call, 0);
}

/* ---- fields, by number: bindings of different age know different names ---- */

enum { ENERGY = 83, POWER_AVERAGE = 185, POWER_INSTANT = 186, LIMIT_MIN = 187, LIMIT_MAX = 188, LIMIT_DEFAULT = 189,
       LIMIT_CURRENT = 190, ENERGY_AGAIN = 191, MCLK_SWITCH_TYPE = 298, MCLK_MIN_INTERVAL = 299 };

static int field_unsigned(nvmlFieldValue_t *field, int supported, uint32_t value) {
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
    field->value.uiVal = value;
    return supported ? 0 : NVML_ERROR_NOT_SUPPORTED;
}

static int field_value(sim_call *call, const sim_board *board, nvmlFieldValue_t *field) {
    uint32_t flags = board->spec.flags;
    int power = (flags & CAN_READ_POWER) != 0, mclk = flags & ANSWERS_MCLK || atomic_load(&call->state->answers_mclk);
    sim_view view = nvml_look(call, board);
    switch (field->fieldId) {
    case ENERGY:
    case ENERGY_AGAIN:
        field->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
        field->value.ullVal = (unsigned long long)view.energy_mj;
        return flags & CAN_COUNT_ENERGY ? 0 : NVML_ERROR_NOT_SUPPORTED;
    case POWER_AVERAGE: return field_unsigned(field, power && flags & AVERAGES_POWER, view.average_mw);
    case POWER_INSTANT: return field_unsigned(field, power, view.power_mw);
    case LIMIT_MIN: return field_unsigned(field, power, board->spec.limit_min_mw);
    case LIMIT_MAX: return field_unsigned(field, power, board->spec.limit_max_mw);
    case LIMIT_DEFAULT: return field_unsigned(field, power, board->spec.limit_default_mw);
    case LIMIT_CURRENT: return field_unsigned(field, power, nvml_copy(call, board).limit_mw);
    case MCLK_SWITCH_TYPE: return field_unsigned(field, mclk, board->spec.mclk_switch_type);
    case MCLK_MIN_INTERVAL: return field_unsigned(field, mclk, board->spec.mclk_min_interval_ms);
    default: return NVML_ERROR_NOT_SUPPORTED;
    }
}

EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    DEVICE_CALL(nvmlDeviceGetFieldValues, device, (uint32_t)count, values && count > 0 ? values[0].fieldId : 0);
    REQUIRE(values && count > 0, NVML_ERROR_INVALID_ARGUMENT);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < count; i++) {
        values[i].timestamp = (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000;
        values[i].latencyUsec = 0;
        values[i].nvmlReturn = field_value(&call, board, &values[i]);
    }
    return nvml_leave(&call, 0);
}
