/* What the nvml_*.c files share. A device call reads:
 *
 *     DEVICE_CALL(nvmlDeviceGetName, device, 0, 0);      opens `call` and `board`, or returns the error
 *     return nvml_leave(&call, code);
 */
#ifndef SIM_NVML_INTERNAL_H
#define SIM_NVML_INTERNAL_H

#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>

#include "calls.h"
#include "model.h"

extern sim_session nvml_session;

sim_state *nvml_state(void);
int nvml_ready(void); /* 0, UNINITIALIZED, or what a session from before a driver reload gets */
int nvml_enter(sim_call *call, enum sim_symbol symbol, nvmlDevice_t device, uint32_t a0, uint32_t a1, sim_board **board);
nvmlReturn_t nvml_leave(sim_call *call, int code);
nvmlDevice_t nvml_handle(int gpu, int mig); /* mig -1: the board itself */
sim_view nvml_look(sim_call *call, const sim_board *board);
sim_dynamic nvml_copy(sim_call *call, const sim_board *board);
int nvml_write_text(char *out, unsigned int size, const char *text);

#define ANY_DEVICE_CALL(symbol, device, a0, a1)                                   \
    sim_call call = {0};                                                          \
    sim_board *board = NULL;                                                      \
    int entered = nvml_enter(&call, SYM_##symbol, device, a0, a1, &board);        \
    if (entered || call.ignore) return nvml_leave(&call, entered)

/* A MIG instance shares its board's clocks and power: everything but identity is NOT_SUPPORTED there. */
#define DEVICE_CALL(symbol, device, a0, a1)        \
    ANY_DEVICE_CALL(symbol, device, a0, a1);       \
    if (call.mig >= 0) return nvml_leave(&call, NVML_ERROR_NOT_SUPPORTED)

#define GLOBAL_CALL(symbol, a0)                                                                  \
    sim_call call = {0};                                                                         \
    int entered = nvml_ready();                                                                  \
    if (entered) return entered;                                                                 \
    entered = call_begin(&call, nvml_state(), SYM_##symbol, -1, a0, 0);                          \
    if (entered || call.ignore) return nvml_leave(&call, entered)

#define REQUIRE(condition, code) \
    if (!(condition)) return nvml_leave(&call, code)

#endif
