/* Who a board is. Nothing here changes while the driver is loaded. */
#include "nvml_internal.h"

#include <stdio.h>
#include <string.h>

EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    ANY_DEVICE_CALL(nvmlDeviceGetName, device, 0, 0);
    return nvml_leave(&call, nvml_write_text(name, length, board->spec.name));
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    ANY_DEVICE_CALL(nvmlDeviceGetUUID, device, 0, 0);
    char text[64];
    if (call.mig < 0) snprintf(text, sizeof text, "%s", board->uuid);
    else snprintf(text, sizeof text, "MIG-%d%s", call.mig, board->uuid + 5);
    return nvml_leave(&call, nvml_write_text(uuid, length, text));
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    ANY_DEVICE_CALL(nvmlDeviceGetPciInfo_v3, device, 0, 0);
    REQUIRE(pci, NVML_ERROR_INVALID_ARGUMENT);
    memset(pci, 0, sizeof *pci);
    pci->domain = board->pci_domain;
    pci->bus = board->pci_bus;
    pci->pciDeviceId = board->spec.pci_device_id;
    pci->pciSubSystemId = board->spec.pci_subsystem_id;
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:00.0", board->pci_domain & 0xffff, board->pci_bus & 0xff);
    snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:00.0", board->pci_domain, board->pci_bus);
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *pci) { return nvmlDeviceGetPciInfo_v3(device, pci); }
EXPORT nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t *pci) { return nvmlDeviceGetPciInfo_v3(device, pci); }

/* One value that is the board's for ever. */
#define CONSTANT(symbol, type, value, supported)                       \
    EXPORT nvmlReturn_t symbol(nvmlDevice_t device, type *out) {       \
        DEVICE_CALL(symbol, device, 0, 0);                             \
        REQUIRE(supported, NVML_ERROR_NOT_SUPPORTED);                  \
        REQUIRE(out, NVML_ERROR_INVALID_ARGUMENT);                     \
        *out = (value);                                                \
        return nvml_leave(&call, 0);                                   \
    }

CONSTANT(nvmlDeviceGetMinorNumber, unsigned int, (unsigned)call.gpu, 1)
CONSTANT(nvmlDeviceGetArchitecture, nvmlDeviceArchitecture_t, board->spec.architecture, 1)
CONSTANT(nvmlDeviceGetBrand, nvmlBrandType_t, board->spec.brand, 1)
CONSTANT(nvmlDeviceGetVirtualizationMode, nvmlGpuVirtualizationMode_t, board->spec.virtualization, 1)
CONSTANT(nvmlDeviceGetComputeMode, nvmlComputeMode_t, NVML_COMPUTEMODE_DEFAULT, 1)
CONSTANT(nvmlDeviceGetDisplayActive, nvmlEnableState_t, board->spec.flags & SHOWS_DISPLAY ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED, 1)
CONSTANT(nvmlDeviceGetDisplayMode, nvmlEnableState_t, NVML_FEATURE_DISABLED, 1)
CONSTANT(nvmlDeviceGetMaxMigDeviceCount, unsigned int, board->spec.mig_instances ? SIM_MAX_MIG : 0, 1)

EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index) {
    ANY_DEVICE_CALL(nvmlDeviceGetIndex, device, 0, 0);
    REQUIRE(index, NVML_ERROR_INVALID_ARGUMENT);
    *index = call.mig < 0 ? (unsigned)call.gpu : (unsigned)call.mig;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    ANY_DEVICE_CALL(nvmlDeviceGetCudaComputeCapability, device, 0, 0);
    REQUIRE(major && minor, NVML_ERROR_INVALID_ARGUMENT);
    *major = (int)board->spec.cc_major;
    *minor = (int)board->spec.cc_minor;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length) {
    DEVICE_CALL(nvmlDeviceGetSerial, device, 0, 0);
    REQUIRE(!(board->spec.flags & HAS_FAN), NVML_ERROR_NOT_SUPPORTED); /* GeForce boards have none */
    return nvml_leave(&call, nvml_write_text(serial, length, board->serial));
}

EXPORT nvmlReturn_t nvmlDeviceGetDriverModel_v2(nvmlDevice_t device, nvmlDriverModel_t *current, nvmlDriverModel_t *pending) {
    DEVICE_CALL(nvmlDeviceGetDriverModel_v2, device, 0, 0);
    (void)current, (void)pending; /* a Windows notion */
    return nvml_leave(&call, NVML_ERROR_NOT_SUPPORTED);
}

EXPORT nvmlReturn_t nvmlDeviceGetDriverModel(nvmlDevice_t device, nvmlDriverModel_t *current, nvmlDriverModel_t *pending) {
    return nvmlDeviceGetDriverModel_v2(device, current, pending);
}

/* ---- MIG ---- */

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    DEVICE_CALL(nvmlDeviceGetMigMode, device, 0, 0);
    int capable = board->spec.architecture >= 7 && board->spec.step_count && strstr(board->spec.name, "00") != NULL;
    REQUIRE(capable, NVML_ERROR_NOT_SUPPORTED); /* A100 and H100 only */
    REQUIRE(current && pending, NVML_ERROR_INVALID_ARGUMENT);
    *current = *pending = board->spec.mig_instances > 0;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_mig) {
    ANY_DEVICE_CALL(nvmlDeviceIsMigDeviceHandle, device, 0, 0);
    REQUIRE(is_mig, NVML_ERROR_INVALID_ARGUMENT);
    *is_mig = call.mig >= 0;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *instance) {
    DEVICE_CALL(nvmlDeviceGetMigDeviceHandleByIndex, device, index, 0);
    REQUIRE(board->spec.mig_instances, NVML_ERROR_NOT_SUPPORTED);
    REQUIRE(instance && index < SIM_MAX_MIG, NVML_ERROR_INVALID_ARGUMENT);
    REQUIRE(index < board->spec.mig_instances, NVML_ERROR_NOT_FOUND);
    *instance = nvml_handle(call.gpu, (int)index);
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t instance, nvmlDevice_t *device) {
    ANY_DEVICE_CALL(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, instance, 0, 0);
    REQUIRE(device && call.mig >= 0, NVML_ERROR_INVALID_ARGUMENT);
    *device = nvml_handle(call.gpu, -1);
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id) {
    ANY_DEVICE_CALL(nvmlDeviceGetGpuInstanceId, device, 0, 0);
    REQUIRE(call.mig >= 0, NVML_ERROR_NOT_SUPPORTED);
    REQUIRE(id, NVML_ERROR_INVALID_ARGUMENT);
    *id = (unsigned)call.mig + 1;
    return nvml_leave(&call, 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id) {
    ANY_DEVICE_CALL(nvmlDeviceGetComputeInstanceId, device, 0, 0);
    REQUIRE(call.mig >= 0, NVML_ERROR_NOT_SUPPORTED);
    REQUIRE(id, NVML_ERROR_INVALID_ARGUMENT);
    *id = 0;
    return nvml_leave(&call, 0);
}
