#define _GNU_SOURCE
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "model.h"

int64_t sim_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void sim_sleep_ns(int64_t ns) {
    if (ns <= 0) return;
    struct timespec pause = {ns / 1000000000, ns % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, &pause) == EINTR) {}
}

void sim_boot_id(char out[40]) {
    memset(out, 0, 40);
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    if (read(fd, out, 36) != 36) out[0] = 0;
    close(fd);
}

int sim_map(const char *path, sim_state **out) {
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return -errno;
    struct stat info;
    int error = fstat(fd, &info) ? errno : info.st_size != (off_t)sizeof(sim_state) ? EPROTO : 0;
    sim_state *state = error ? MAP_FAILED : mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (!error && state == MAP_FAILED) error = errno;
    char boot[40];
    sim_boot_id(boot);
    if (!error && (atomic_load(&state->magic) != SIM_MAGIC || state->version != SIM_VERSION || state->size != sizeof *state
                   || strncmp(state->boot, boot, sizeof boot) != 0)) {
        munmap(state, sizeof *state);
        error = EPROTO;
    }
    if (error) {
        close(fd);
        return -error;
    }
    *out = state;
    return fd;
}

void sim_lock(sim_state *state) {
    if (pthread_mutex_lock(&state->mutex) == EOWNERDEAD) pthread_mutex_consistent(&state->mutex);
}

void sim_unlock(sim_state *state) { pthread_mutex_unlock(&state->mutex); }

/* A client is an open file description with a shared lock on one byte. The kernel drops it when the last descriptor of a dead
 * process goes, exactly as it closes /dev/nvidia0: no pid table, right for zombies, forks and containers. */
static struct flock client_lock(short type) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = SIM_CLIENT_BYTE, .l_len = 1};
}

/* Without persistence the driver deinitialises a GPU when its last client goes, and forgets what was set on it. `fd` must not itself
 * hold the client lock. Lazy is enough: nobody can see the difference before opening the driver, or asking the remote control. */
void sim_deinitialise_unused(sim_state *state, int fd) {
    struct flock probe = client_lock(F_WRLCK);
    if (fcntl(fd, F_OFD_GETLK, &probe) != 0 || probe.l_type != F_UNLCK) return;
    for (uint32_t gpu = 0; gpu < state->board_count; gpu++) {
        sim_board *board = &state->boards[gpu];
        const sim_dynamic *seen = model_read(board);
        if (seen->persistence || model_in_use(seen)) continue;
        if (!seen->memory_lock_max_mhz && !seen->graphics_lock_max_mhz && !seen->application_memory_mhz
            && seen->forced_pstate == PSTATE_AUTOMATIC && seen->limit_mw == board->spec.limit_default_mw) continue;
        sim_dynamic *edited = model_edit(board);
        model_forget_locks(edited);
        edited->limit_mw = board->spec.limit_default_mw;
        model_commit(board, edited, sim_now_ns());
    }
}

int sim_client_open(sim_state *state, int fd) {
    struct flock mine = client_lock(F_RDLCK);
    sim_lock(state);
    sim_deinitialise_unused(state, fd);
    int error = fcntl(fd, F_OFD_SETLK, &mine) ? errno : 0;
    sim_unlock(state);
    return error;
}

void sim_client_close(sim_state *state, int *fd) {
    sim_lock(state);
    int probe = dup(*fd); /* keeps the file reachable after the lock is gone */
    struct flock none = client_lock(F_UNLCK);
    fcntl(*fd, F_OFD_SETLK, &none);
    close(*fd);
    *fd = -1;
    if (probe >= 0) {
        sim_deinitialise_unused(state, probe);
        close(probe);
    }
    sim_unlock(state);
}
