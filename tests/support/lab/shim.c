/* A clock and a disk that can be made wrong, for one process, while it runs.
 *
 * Loaded by LD_PRELOAD this stands between the process and libc, and so between them and whatever Python, LMDB or any
 * other library asks of libc. The kernel's own ways (time namespaces do not cover the wall clock; dm-flakey and fault
 * injection need modules or a debug kernel) are missing on most machines; libfaketime, after a jump, lets time.sleep
 * fail with EINVAL, which no machine with a wrong clock does.
 *
 * LAB_CLOCK       a file that holds by how many seconds the wall clock is ahead (negative: behind); looked at every
 *                 100 ms. The monotonic clock is left alone, as an operator or NTP leaves it.
 * LAB_IO_FOLDER   the file system whose files are struck, by any folder on it
 * LAB_IO_CONTROL  a file that holds `w` (writes fail with EIO), `s` (syncs do) or both; no file: all goes through
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* ---- the wall clock ---- */

static long ahead;
static long looked_at = -1; /* monotonic tenths of a second; a race of two threads costs a second look */

static int (*libc_gettime)(clockid_t, struct timespec *);
static const char *clock_file;

/* libc's own, which needs no system call; before the constructor has found it, the system call. */
static int raw(clockid_t clock, struct timespec *now) {
    return libc_gettime ? libc_gettime(clock, now) : (int)syscall(SYS_clock_gettime, clock, now);
}

static long offset(void) {
    struct timespec now;
    char text[32];
    if (!clock_file)
        return 0;
    raw(CLOCK_MONOTONIC, &now);
    long tenths = now.tv_sec * 10 + now.tv_nsec / 100000000;
    if (__atomic_load_n(&looked_at, __ATOMIC_RELAXED) != tenths) {
        __atomic_store_n(&looked_at, tenths, __ATOMIC_RELAXED);
        int file = open(clock_file, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            ssize_t length = read(file, text, sizeof text - 1);
            close(file);
            if (length > 0) {
                text[length] = 0;
                __atomic_store_n(&ahead, strtol(text, NULL, 10), __ATOMIC_RELAXED);
            }
        }
    }
    return __atomic_load_n(&ahead, __ATOMIC_RELAXED);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = raw(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    raw(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec + offset();
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    raw(CLOCK_REALTIME, &now);
    now.tv_sec += offset();
    if (result)
        *result = now.tv_sec;
    return now.tv_sec;
}

/* ---- the disk ---- */

static const char *control;
static dev_t struck;
static int armed;

__attribute__((constructor)) static void arm(void) {
    struct stat about;
    const char *folder = getenv("LAB_IO_FOLDER");
    libc_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    clock_file = getenv("LAB_CLOCK");
    control = getenv("LAB_IO_CONTROL");
    if (control && folder && stat(folder, &about) == 0) {
        struck = about.st_dev;
        armed = 1;
    }
}

static int fails(int fd, char operation) {
    struct stat about;
    char orders[8];
    if (!armed || access(control, F_OK) != 0)
        return 0;
    if (fstat(fd, &about) != 0 || !S_ISREG(about.st_mode) || about.st_dev != struck)
        return 0;
    int file = open(control, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t length = read(file, orders, sizeof orders);
    close(file);
    if (length <= 0 || memchr(orders, operation, (size_t)length) == NULL)
        return 0;
    errno = EIO;
    return 1;
}

#define STRIKE(operation, result, name, parameters, arguments)                    \
    result name parameters {                                                      \
        static result(*real) parameters;                                          \
        if (fails(fd, operation))                                                 \
            return -1;                                                            \
        if (!real)                                                                \
            real = (result(*) parameters)dlsym(RTLD_NEXT, #name);                 \
        return real arguments;                                                    \
    }

STRIKE('w', ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
STRIKE('w', ssize_t, writev, (int fd, const struct iovec *data, int count), (fd, data, count))
STRIKE('w', ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
STRIKE('w', ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
STRIKE('w', ssize_t, pwritev, (int fd, const struct iovec *data, int count, off_t at), (fd, data, count, at))
STRIKE('w', ssize_t, pwritev64, (int fd, const struct iovec *data, int count, off64_t at), (fd, data, count, at))
STRIKE('s', int, fsync, (int fd), (fd))
STRIKE('s', int, fdatasync, (int fd), (fd))
