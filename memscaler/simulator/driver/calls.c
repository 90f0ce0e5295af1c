#define _GNU_SOURCE
#include "calls.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIM_NAME(name) #name,
#define SIM_YES(name) 1,
#define SIM_NO(name) 0,
const char *const sim_symbol_names[SYM_COUNT] = {SIM_SYMBOLS(SIM_NAME, SIM_NAME)};
const unsigned char sim_symbol_is_control[SYM_COUNT] = {SIM_SYMBOLS(SIM_YES, SIM_NO)};

static __thread uint32_t thread_id;
static uint32_t process_id;

static void forget_identity(void) {
    thread_id = 0;
    process_id = 0;
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_identity); }

/* ---- session ---- */

int session_attach(sim_session *session) {
    const char *path = getenv(SIM_ENV);
    if (!path || !*path) return SESSION_NO_DRIVER;
    sim_state *state;
    int fd = sim_map(path, &state);
    if (fd < 0) return fd == -EPROTO ? SESSION_WRONG_VERSION : SESSION_NO_DRIVER;
    struct stat info;
    fstat(fd, &info);
    if (session->fd >= 0) { /* a reference exists: keep what it uses */
        munmap(state, sizeof *state);
        close(fd);
        return 0;
    }
    if (atomic_load(&session->state) && session->device == info.st_dev && session->inode == info.st_ino)
        munmap(state, sizeof *state);
    else /* an older mapping stays: another thread may still be inside a call */
        atomic_store(&session->state, state);
    session->device = info.st_dev;
    session->inode = info.st_ino;
    session->fd = fd;
    return 0;
}

int session_open(sim_session *session) {
    sim_state *state = atomic_load(&session->state);
    if (atomic_load(&session->references) == 0) {
        if (sim_client_open(state, session->fd)) return SESSION_NO_DRIVER;
        atomic_store(&session->generation, atomic_load(&state->generation));
    }
    atomic_fetch_add(&session->references, 1);
    return 0;
}

int session_release(sim_session *session) {
    if (atomic_load(&session->references) == 0) return 0;
    if (atomic_fetch_sub(&session->references, 1) == 1) sim_client_close(atomic_load(&session->state), &session->fd);
    return 1;
}

/* ---- log ---- */

static void log_entry(sim_call *call, enum sim_symbol symbol, uint32_t argument0, uint32_t argument1) {
    sim_state *state = call->state;
    if (!sim_symbol_is_control[symbol] && !atomic_load_explicit(&state->log_everything, memory_order_relaxed)) return;
    if (!thread_id) thread_id = (uint32_t)syscall(SYS_gettid);
    if (!process_id) process_id = (uint32_t)getpid();
    call->sequence = atomic_fetch_add(&state->log_head, 1) + 1;
    sim_record *record = call->record = &state->log[(call->sequence - 1) % SIM_LOG_SIZE];
    atomic_store(&record->sequence, 0);
    record->entry_ns = sim_now_ns();
    record->return_ns = 0;
    record->pid = process_id;
    record->tid = thread_id;
    record->symbol = symbol;
    record->gpu = call->gpu;
    record->argument0 = argument0;
    record->argument1 = argument1;
    record->code = 0;
    record->finished = 0;
    atomic_store(&record->sequence, call->sequence);
}

int call_end(sim_call *call, int code) {
    sim_record *record = call->record;
    if (record && atomic_load(&record->sequence) == call->sequence) {
        record->return_ns = sim_now_ns();
        record->code = code;
        atomic_thread_fence(memory_order_release);
        record->finished = 1;
    }
    return code;
}

/* ---- faults ---- */

static int fault_applies(sim_fault *fault, enum sim_symbol symbol, int gpu) {
    if (!atomic_load(&fault->active)) return 0;
    if (fault->symbol >= 0 && fault->symbol != (int)symbol) return 0;
    if (fault->gpu >= 0 && fault->gpu != gpu) return 0;
    uint32_t hit = atomic_fetch_add(&fault->hits, 1);
    return hit >= fault->after && (!fault->times || hit - fault->after < fault->times);
}

static int fault_strike(sim_call *call, enum sim_symbol symbol) {
    int code = 0;
    for (int i = 0; i < SIM_MAX_FAULTS; i++) {
        sim_fault *fault = &call->state->faults[i];
        if (!fault_applies(fault, symbol, call->gpu)) continue;
        uint32_t incarnation = atomic_load(&fault->active);
        int wanted = fault->code;
        if (fault->delay_ms) sim_sleep_ns(fault->delay_ms * 1000000ll);
        if (fault->ignore) call->ignore = 1;
        while (fault->hang && atomic_load(&fault->active) == incarnation) sim_sleep_ns(2000000);
        if (wanted != INT32_MIN && !code) code = wanted;
        if (wanted == 0) call->ignore = 1;
    }
    return code;
}

int call_begin(sim_call *call, sim_state *state, enum sim_symbol symbol, int gpu, uint32_t argument0, uint32_t argument1) {
    call->state = state;
    call->gpu = gpu;
    log_entry(call, symbol, argument0, argument1);
    int code = atomic_load_explicit(&state->fault_count, memory_order_acquire) ? fault_strike(call, symbol) : 0;
    uint32_t latency_us = atomic_load_explicit(sim_symbol_is_control[symbol] ? &state->setter_latency_us : &state->getter_latency_us,
                                               memory_order_relaxed);
    if (latency_us) sim_sleep_ns(latency_us * 1000ll);
    return code;
}

int call_may_write(const sim_state *state) {
    uint32_t rule = atomic_load(&((sim_state *)state)->permission);
    return rule == PERMISSION_ALLOW || (rule == PERMISSION_EUID && geteuid() == 0);
}
