#include "model.h"

#include <string.h>

static uint32_t clamp(uint32_t value, uint32_t low, uint32_t high) { return value < low ? low : value > high ? high : value; }

const sim_dynamic *model_read(const sim_board *board) { return &board->dynamic[atomic_load(&board->current) & 1]; }

sim_dynamic *model_edit(sim_board *board) {
    sim_dynamic *spare = &board->dynamic[(atomic_load(&board->current) & 1) ^ 1];
    *spare = *model_read(board);
    return spare;
}

int model_in_use(const sim_dynamic *d) { return d->context || d->process_count; }

void model_forget_locks(sim_dynamic *d) {
    d->memory_lock_min_mhz = d->memory_lock_max_mhz = 0;
    d->graphics_lock_min_mhz = d->graphics_lock_max_mhz = 0;
    d->application_memory_mhz = d->application_graphics_mhz = 0;
    d->forced_pstate = PSTATE_AUTOMATIC;
}

/* ---- clock tables ---- */

uint32_t model_graphics_clock(const sim_step *step, uint32_t index) {
    if (step->graphics_count < 2) return step->graphics_max_mhz;
    uint32_t span = step->graphics_max_mhz - step->graphics_min_mhz, parts = step->graphics_count - 1;
    return step->graphics_max_mhz - (2 * index * span + parts) / (2 * parts);
}

const sim_step *model_step_of_memory(const sim_spec *spec, uint32_t memory_mhz) {
    for (uint32_t i = 0; i < spec->step_count; i++)
        if (spec->steps[i].memory_mhz <= memory_mhz) return &spec->steps[i];
    return &spec->steps[spec->step_count - 1];
}

const sim_step *model_step_of_pstate(const sim_spec *spec, uint32_t pstate) {
    for (uint32_t i = 0; i < spec->step_count; i++)
        if (spec->steps[i].pstate == pstate) return &spec->steps[i];
    return NULL;
}

/* The highest supported clock that is not above the wish: `-lmc 9500` runs at 9001. */
uint32_t model_snap_memory(const sim_spec *spec, uint32_t mhz) { return model_step_of_memory(spec, mhz)->memory_mhz; }

uint32_t model_snap_graphics(const sim_spec *spec, uint32_t mhz) {
    const sim_step *top = &spec->steps[0];
    for (uint32_t i = 0; i < top->graphics_count; i++)
        if (model_graphics_clock(top, i) <= mhz) return model_graphics_clock(top, i);
    return top->graphics_min_mhz;
}

/* ---- what the inputs ask for ---- */

static uint32_t busy_percent(const sim_dynamic *d) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < d->process_count; i++) sum += d->processes[i].sm_percent;
    return clamp(sum > d->utilization_percent ? sum : d->utilization_percent, 0, 100);
}

/* Clocks without any lock. A resident context pins them high even when idle, except on boards which drop by themselves. */
static void natural_clocks(const sim_spec *spec, const sim_dynamic *d, uint32_t *memory, uint32_t *graphics) {
    int busy = busy_percent(d) > 0;
    if (!busy && (!model_in_use(d) || spec->flags & DROPS_WHEN_IDLE)) {
        *memory = spec->steps[spec->step_count - 1].memory_mhz;
        *graphics = spec->idle_graphics_mhz;
        if (spec->mclk_switch_type == 1) *memory = spec->steps[0].memory_mhz;
        return;
    }
    *memory = d->application_memory_mhz ? d->application_memory_mhz : spec->context_memory_mhz;
    *graphics = d->application_graphics_mhz ? d->application_graphics_mhz
                : busy ? spec->steps[0].graphics_max_mhz : spec->context_graphics_mhz;
}

static void held_clocks(const sim_spec *spec, const sim_dynamic *d, uint32_t *memory, uint32_t *graphics) {
    natural_clocks(spec, d, memory, graphics);
    const sim_step *forced = d->forced_pstate == PSTATE_AUTOMATIC ? NULL : model_step_of_pstate(spec, d->forced_pstate);
    if (forced) *memory = forced->memory_mhz;
    if (d->memory_lock_max_mhz) *memory = clamp(*memory, d->memory_lock_min_mhz, d->memory_lock_max_mhz);
    if (d->graphics_lock_max_mhz) *graphics = clamp(*graphics, d->graphics_lock_min_mhz, d->graphics_lock_max_mhz);
    const sim_step *step = model_step_of_memory(spec, *memory);
    *graphics = clamp(*graphics, step->graphics_min_mhz, step->graphics_max_mhz);
}

/* Interpolates between four measured points: bare, parked, idle with a context, active. */
static uint32_t power_at(const sim_spec *spec, const sim_dynamic *d, uint32_t memory, uint32_t graphics, uint32_t *capped) {
    const sim_step *top = &spec->steps[0], *bottom = &spec->steps[spec->step_count - 1];
    int switches = spec->step_count > 1 && spec->mclk_switch_type != 1;
    double low_graphics = switches ? bottom->graphics_max_mhz : spec->idle_graphics_mhz;
    double graphics_part = (graphics - low_graphics) / (spec->context_graphics_mhz - low_graphics);
    double memory_part = switches ? ((double)memory - bottom->memory_mhz) / (spec->context_memory_mhz - bottom->memory_mhz) : 0;
    double share = switches ? spec->memory_share_permille / 1000.0 : 0;
    graphics_part = graphics_part < 0 ? 0 : graphics_part > 1 ? 1 : graphics_part;
    memory_part = memory_part < 0 ? 0 : memory_part > 1 ? 1 : memory_part;
    double low = model_in_use(d) ? spec->parked_mw : spec->bare_mw;
    double power = low + (spec->context_mw - low) * (share * memory_part + (1 - share) * graphics_part);
    power += (double)(spec->active_mw - spec->context_mw) * busy_percent(d) / 100 * graphics / top->graphics_max_mhz * memory
             / spec->context_memory_mhz;
    *capped = power > d->limit_mw;
    return (uint32_t)(*capped ? d->limit_mw : power + 0.5);
}

/* ---- time ---- */

static uint64_t power_of(const sim_dynamic *d, int64_t now_ns) {
    uint64_t mw = d->segment_count ? d->segments[0].mw : 0;
    for (uint32_t i = 1; i < d->segment_count && d->segments[i].start_ns <= now_ns; i++) mw = d->segments[i].mw;
    return mw;
}

/* Millijoules between two times; before the oldest segment its power is taken to have been the same. */
static double energy_between(const sim_dynamic *d, int64_t from_ns, int64_t to_ns) {
    double mj = 0;
    for (uint32_t i = 0; i < d->segment_count; i++) {
        int64_t start = i == 0 || d->segments[i].start_ns < from_ns ? from_ns : d->segments[i].start_ns;
        int64_t end = i + 1 < d->segment_count && d->segments[i + 1].start_ns < to_ns ? d->segments[i + 1].start_ns : to_ns;
        if (end > start) mj += (double)d->segments[i].mw * (double)(end - start) * 1e-9;
    }
    return mj;
}

static void push_segment(sim_dynamic *d, int64_t start_ns, uint64_t mw) {
    if (d->segment_count && d->segments[d->segment_count - 1].mw == mw) return;
    if (d->segment_count == SIM_MAX_SEGMENTS)
        memmove(d->segments, d->segments + 1, --d->segment_count * sizeof d->segments[0]);
    d->segments[d->segment_count++] = (sim_segment){start_ns, mw};
}

static int64_t settle_ns(const sim_board *board, const sim_dynamic *d, uint32_t memory, uint32_t graphics) {
    if (memory == d->memory_from_mhz && graphics == d->graphics_from_mhz) return 0;
    int wakes = memory > d->memory_from_mhz || (memory == d->memory_from_mhz && graphics > d->graphics_from_mhz);
    return 1000ll * atomic_load(wakes ? &board->settle_wake_us : &board->settle_park_us);
}

static void note_memory_switch(const sim_spec *spec, sim_dynamic *d, int64_t now_ns) {
    if (d->last_mclk_ns && now_ns - d->last_mclk_ns < 1000000ll * spec->mclk_min_interval_ms) d->mclk_too_soon++;
    d->last_mclk_ns = now_ns;
}

void model_commit(sim_board *board, sim_dynamic *d, int64_t now_ns) {
    const sim_spec *spec = &board->spec;
    if (now_ns < d->energy_ns) now_ns = d->energy_ns; /* two threads may have read the clock in the other order */
    d->energy_mj += energy_between(d, d->energy_ns, now_ns);
    d->energy_ns = now_ns;
    if (now_ns >= d->switch_ns) {
        d->memory_from_mhz = d->memory_to_mhz;
        d->graphics_from_mhz = d->graphics_to_mhz;
    }
    uint32_t memory, graphics, capped;
    held_clocks(spec, d, &memory, &graphics);
    if (memory != d->memory_to_mhz) note_memory_switch(spec, d, now_ns);
    if (memory != d->memory_to_mhz || graphics != d->graphics_to_mhz) {
        d->memory_to_mhz = memory;
        d->graphics_to_mhz = graphics;
        d->switch_ns = now_ns + settle_ns(board, d, memory, graphics);
    }
    while (d->segment_count && d->segments[d->segment_count - 1].start_ns > now_ns) d->segment_count--; /* a future that will not be */
    push_segment(d, now_ns, power_at(spec, d, d->memory_from_mhz, d->graphics_from_mhz, &capped));
    if (d->switch_ns >= now_ns) push_segment(d, d->switch_ns, power_at(spec, d, memory, graphics, &capped));
    atomic_store(&board->current, (atomic_load(&board->current) & 1) ^ 1);
}

void model_start(sim_board *board, int64_t now_ns) {
    sim_dynamic *d = model_edit(board);
    model_forget_locks(d);
    d->limit_mw = board->spec.limit_default_mw;
    d->persistence = board->initial_persistence;
    d->segment_count = 0;
    d->energy_mj = 0;
    d->energy_ns = now_ns;
    d->last_mclk_ns = 0;
    held_clocks(&board->spec, d, &d->memory_to_mhz, &d->graphics_to_mhz);
    d->memory_from_mhz = d->memory_to_mhz;
    d->graphics_from_mhz = d->graphics_to_mhz;
    d->switch_ns = now_ns;
    model_commit(board, d, now_ns);
}

static uint64_t event_reasons(const sim_board *board, const sim_dynamic *d, const sim_view *view) {
    uint64_t reasons = 0;
    if (!view->utilization_percent && view->memory_mhz <= board->spec.steps[board->spec.step_count - 1].memory_mhz
        && view->graphics_mhz <= board->spec.idle_graphics_mhz) reasons |= 0x1; /* idle */
    if (d->application_memory_mhz || d->graphics_lock_max_mhz || d->memory_lock_max_mhz) reasons |= 0x2; /* set by a user */
    if (view->capped) reasons |= 0x4;
    return reasons;
}

sim_view model_view(const sim_board *board, int64_t now_ns) {
    const sim_dynamic *d = model_read(board);
    if (now_ns < d->energy_ns) now_ns = d->energy_ns;
    int settled = now_ns >= d->switch_ns;
    sim_view view = {
        .memory_mhz = settled ? d->memory_to_mhz : d->memory_from_mhz,
        .graphics_mhz = settled ? d->graphics_to_mhz : d->graphics_from_mhz,
        .settling = !settled,
        .power_mw = (uint32_t)power_of(d, now_ns),
        .average_mw = (uint32_t)(energy_between(d, now_ns - 1000000000, now_ns) + 0.5),
        .utilization_percent = busy_percent(d),
        .used_bytes = (d->context ? d->context_bytes : 0) + (board->spec.memory_bytes >> 8),
        .energy_mj = d->energy_mj + energy_between(d, d->energy_ns, now_ns),
    };
    for (uint32_t i = 0; i < d->process_count; i++) view.used_bytes += d->processes[i].used_bytes;
    if (view.used_bytes > board->spec.memory_bytes) view.used_bytes = board->spec.memory_bytes;
    view.memory_utilization_percent = view.utilization_percent ? d->memory_utilization_percent : 0;
    view.pstate = model_step_of_memory(&board->spec, view.memory_mhz)->pstate;
    natural_clocks(&board->spec, d, &view.natural_memory_mhz, &view.natural_graphics_mhz);
    view.slow = view.memory_mhz < view.natural_memory_mhz || view.graphics_mhz < view.natural_graphics_mhz;
    power_at(&board->spec, d, view.memory_mhz, view.graphics_mhz, &view.capped);
    view.event_reasons = event_reasons(board, d, &view);
    return view;
}
