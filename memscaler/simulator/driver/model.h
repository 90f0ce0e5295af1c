/* The physics: what the clocks, the power and the energy are at a given time. All functions expect the state's lock to be held. */
#ifndef SIM_MODEL_H
#define SIM_MODEL_H

#include "state.h"

typedef struct {
    uint32_t memory_mhz, graphics_mhz, pstate, natural_memory_mhz, natural_graphics_mhz, slow, settling, capped;
    uint32_t power_mw, average_mw, utilization_percent, memory_utilization_percent;
    uint64_t used_bytes, event_reasons;
    double energy_mj;
} sim_view;

const sim_dynamic *model_read(const sim_board *board);
sim_dynamic *model_edit(sim_board *board);                                /* a private copy of what is in force */
void model_commit(sim_board *board, sim_dynamic *edited, int64_t now_ns); /* settle, integrate, put in force */
void model_start(sim_board *board, int64_t now_ns);                       /* as after loading the driver */
void model_forget_locks(sim_dynamic *dynamic);
int model_in_use(const sim_dynamic *dynamic);
sim_view model_view(const sim_board *board, int64_t now_ns);

uint32_t model_snap_memory(const sim_spec *spec, uint32_t mhz);
uint32_t model_snap_graphics(const sim_spec *spec, uint32_t mhz);
uint32_t model_graphics_clock(const sim_step *step, uint32_t index);
const sim_step *model_step_of_memory(const sim_spec *spec, uint32_t memory_mhz);
const sim_step *model_step_of_pstate(const sim_spec *spec, uint32_t pstate);

#endif
