/* What every call into the simulated driver goes through: the log, injected faults, latency. */
#ifndef SIM_CALLS_H
#define SIM_CALLS_H

#include "state.h"
#include "symbols.h"

#define EXPORT __attribute__((visibility("default")))

typedef struct {
    sim_state *state;
    sim_record *record;
    uint64_t sequence;
    int32_t gpu, mig, ignore;
} sim_call;

/* One library's session with the driver in this process. */
typedef struct {
    pthread_mutex_t mutex;
    _Atomic uint32_t references, generation;
    sim_state *_Atomic state;
    uint64_t device, inode;
    int fd;
} sim_session;

enum { SESSION_NO_DRIVER = 1, SESSION_WRONG_VERSION = 2 };
int session_attach(sim_session *session);   /* map the state; idempotent */
int session_open(sim_session *session);     /* become a client (first reference) */
int session_release(sim_session *session);  /* returns 0 when there was no reference */

/* 0: do the work (or, with `ignore`, pretend to); anything else: return it. */
int call_begin(sim_call *call, sim_state *state, enum sim_symbol symbol, int gpu, uint32_t argument0, uint32_t argument1);
int call_end(sim_call *call, int code);
int call_may_write(const sim_state *state);

#endif
