/* Preloaded into a process: its wall clock is off by the seconds that the file $WALL_CLOCK_OFFSET holds,
 * a 64-bit integer, which may change at any time. Its monotonic clock is left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static int (*real)(clockid_t, struct timespec *);
static volatile int64_t *offset_s;

__attribute__((constructor)) static void start(void) {
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("WALL_CLOCK_OFFSET");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return;
    void *at = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) offset_s = at;
    close(file);
}

int clock_gettime(clockid_t id, struct timespec *time) {
    int result = real(id, time);
    if (!result && id == CLOCK_REALTIME && offset_s) time->tv_sec += *offset_s;
    return result;
}
