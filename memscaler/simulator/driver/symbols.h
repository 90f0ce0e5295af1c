/* Every call the simulated driver knows, by canonical name. CONTROL calls are always written to the call log; READ calls only when
 * the log is set to everything. Aliases share the canonical identity, so that one fault covers nvmlInit, nvmlInit_v2 and
 * nvmlInitWithFlags alike. */
#ifndef SIM_SYMBOLS_H
#define SIM_SYMBOLS_H

#define SIM_SYMBOLS(CONTROL, READ) \
    CONTROL(nvmlInitWithFlags) CONTROL(nvmlShutdown) READ(nvmlSystemGetDriverVersion) READ(nvmlSystemGetNVMLVersion) \
    READ(nvmlSystemGetCudaDriverVersion) READ(nvmlSystemGetProcessName) READ(nvmlDeviceGetCount_v2) \
    READ(nvmlDeviceGetHandleByIndex_v2) READ(nvmlDeviceGetHandleByUUID) READ(nvmlDeviceGetHandleByPciBusId_v2) \
    READ(nvmlDeviceGetName) READ(nvmlDeviceGetUUID) READ(nvmlDeviceGetPciInfo_v3) READ(nvmlDeviceGetIndex) \
    READ(nvmlDeviceGetMinorNumber) READ(nvmlDeviceGetArchitecture) READ(nvmlDeviceGetBrand) \
    READ(nvmlDeviceGetCudaComputeCapability) READ(nvmlDeviceGetSupportedMemoryClocks) \
    READ(nvmlDeviceGetSupportedGraphicsClocks) READ(nvmlDeviceGetClockInfo) READ(nvmlDeviceGetClock) \
    READ(nvmlDeviceGetMaxClockInfo) READ(nvmlDeviceGetPerformanceState) READ(nvmlDeviceGetSupportedPerformanceStates) \
    READ(nvmlDeviceGetMinMaxClockOfPState) CONTROL(nvmlDeviceSetMemoryLockedClocks) \
    CONTROL(nvmlDeviceResetMemoryLockedClocks) CONTROL(nvmlDeviceSetGpuLockedClocks) \
    CONTROL(nvmlDeviceResetGpuLockedClocks) CONTROL(nvmlDeviceSetApplicationsClocks) \
    CONTROL(nvmlDeviceResetApplicationsClocks) READ(nvmlDeviceGetApplicationsClock) READ(nvmlDeviceGetPowerUsage) \
    READ(nvmlDeviceGetPowerManagementLimit) READ(nvmlDeviceGetPowerManagementLimitConstraints) \
    CONTROL(nvmlDeviceSetPowerManagementLimit) READ(nvmlDeviceGetEnforcedPowerLimit) \
    READ(nvmlDeviceGetTotalEnergyConsumption) READ(nvmlDeviceGetFieldValues) \
    READ(nvmlDeviceGetCurrentClocksEventReasons) READ(nvmlDeviceGetUtilizationRates) READ(nvmlDeviceGetTemperature) \
    READ(nvmlDeviceGetTemperatureV) READ(nvmlDeviceGetComputeRunningProcesses_v3) \
    READ(nvmlDeviceGetGraphicsRunningProcesses_v3) READ(nvmlDeviceGetMPSComputeRunningProcesses_v3) \
    READ(nvmlDeviceGetProcessUtilization) READ(nvmlDeviceGetPersistenceMode) CONTROL(nvmlDeviceSetPersistenceMode) \
    READ(nvmlDeviceGetMigMode) READ(nvmlDeviceIsMigDeviceHandle) READ(nvmlDeviceGetVirtualizationMode) \
    READ(nvmlDeviceGetMemoryInfo) READ(nvmlDeviceGetMemoryInfo_v2) READ(nvmlEventSetCreate) \
    READ(nvmlDeviceRegisterEvents) READ(nvmlDeviceGetSupportedEventTypes) READ(nvmlEventSetWait_v2) READ(nvmlEventSetFree) \
    READ(nvmlDeviceGetBAR1MemoryInfo) READ(nvmlDeviceGetComputeMode) READ(nvmlDeviceGetEncoderUtilization) \
    READ(nvmlDeviceGetDecoderUtilization) READ(nvmlDeviceGetFanSpeed) READ(nvmlDeviceGetPcieThroughput) \
    READ(nvmlDeviceGetSerial) READ(nvmlDeviceGetTotalEccErrors) READ(nvmlDeviceGetDisplayActive) \
    READ(nvmlDeviceGetDisplayMode) READ(nvmlDeviceGetDriverModel_v2) READ(nvmlDeviceGetMaxMigDeviceCount) \
    READ(nvmlDeviceGetMigDeviceHandleByIndex) READ(nvmlDeviceGetDeviceHandleFromMigDeviceHandle) \
    READ(nvmlDeviceGetGpuInstanceId) READ(nvmlDeviceGetComputeInstanceId) \
    CONTROL(NvAPI_Initialize) CONTROL(NvAPI_Unload) READ(NvAPI_EnumPhysicalGPUs) READ(NvAPI_GPU_GetBusId) \
    READ(NvAPI_GPU_GetBusSlotId) READ(NvAPI_GPU_GetCurrentPstate) READ(NvAPI_GPU_GetPstates20) \
    CONTROL(NvAPI_GPU_SetForcePstate)

/* alias, canonical */
#define SIM_ALIASES(ALIAS) \
    ALIAS(nvmlInit, nvmlInitWithFlags) ALIAS(nvmlInit_v2, nvmlInitWithFlags) \
    ALIAS(nvmlDeviceGetCount, nvmlDeviceGetCount_v2) ALIAS(nvmlDeviceGetHandleByIndex, nvmlDeviceGetHandleByIndex_v2) \
    ALIAS(nvmlDeviceGetHandleByPciBusId, nvmlDeviceGetHandleByPciBusId_v2) \
    ALIAS(nvmlDeviceGetPciInfo, nvmlDeviceGetPciInfo_v3) ALIAS(nvmlDeviceGetPciInfo_v2, nvmlDeviceGetPciInfo_v3) \
    ALIAS(nvmlDeviceGetCurrentClocksThrottleReasons, nvmlDeviceGetCurrentClocksEventReasons) \
    ALIAS(nvmlDeviceGetComputeRunningProcesses, nvmlDeviceGetComputeRunningProcesses_v3) \
    ALIAS(nvmlDeviceGetComputeRunningProcesses_v2, nvmlDeviceGetComputeRunningProcesses_v3) \
    ALIAS(nvmlDeviceGetDriverModel, nvmlDeviceGetDriverModel_v2) ALIAS(nvmlEventSetWait, nvmlEventSetWait_v2)

#define SIM_ENUM(name) SYM_##name,
enum sim_symbol { SIM_SYMBOLS(SIM_ENUM, SIM_ENUM) SYM_COUNT };

extern const char *const sim_symbol_names[SYM_COUNT];
extern const unsigned char sim_symbol_is_control[SYM_COUNT];

#endif
