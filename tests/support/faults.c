/* A disk that fails as a test says: preloaded into the real binary, between it (with its engine's threads) and the system calls on
 * files below one folder. No part of the provider.
 *
 *   FAULTS_UNDER  the folder
 *   FAULTS_PLAN   a file with one line, read at each call: "RUN KIND NTH TIMES HOW ARG". Another RUN begins to count anew; the NTH call
 *                 of KIND (write, flush, read) and the TIMES - 1 behind it (0: all) are done as HOW says:
 *                   eio, enospc   fails, nothing is done
 *                   torn          half of it is written, then it fails
 *                   half          half of it is written (a flush: nothing is done), and it says that all is
 *                   slow          takes ARG milliseconds longer
 *                   late          takes ARG milliseconds, then fails with EIO
 *                   none          is counted only
 *   FAULTS_TRACE  a file to append "RUN KIND COUNT HOW NAME BYTES PATH" to, a line for each call while RUN is not 0
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum how { NONE, FAILS, TORN, HALF };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long run_now = -1;
static long counted;

/* What becomes of this call on `fd`; errno is set where it is to fail. */
static enum how meets(int fd, const char *kind, const char *name, size_t bytes)
{
    const char *under = getenv("FAULTS_UNDER"), *plan = getenv("FAULTS_PLAN");
    char link[64], path[4096], line[128] = "", wanted[16] = "", how[16] = "none";
    long run = 0, nth = 0, times = 1, arg = 0;
    int saved = errno;
    if (!under || !plan)
        return NONE;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0 || strncmp(path, under, strlen(under)) != 0) {
        errno = saved;
        return NONE;
    }
    path[length] = 0;
    int file = syscall(SYS_openat, AT_FDCWD, plan, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        ssize_t got = syscall(SYS_read, file, line, sizeof line - 1);
        line[got > 0 ? got : 0] = 0;
        syscall(SYS_close, file);
    }
    sscanf(line, "%ld %15s %ld %ld %15s %ld", &run, wanted, &nth, &times, how, &arg);
    if (run == 0 || (strcmp(wanted, kind) != 0 && strcmp(wanted, "any") != 0)) {
        errno = saved;
        return NONE;
    }
    pthread_mutex_lock(&lock);
    if (run != run_now) {
        run_now = run;
        counted = 0;
    }
    long count = ++counted;
    pthread_mutex_unlock(&lock);
    int meant = count >= nth && (times == 0 || count < nth + times) && nth > 0;
    const char *trace = getenv("FAULTS_TRACE");
    if (trace) {
        char told[4300];
        int size = snprintf(told, sizeof told, "%ld %s %ld %s %s %zu %s\n", run, kind, count,
                            meant ? how : "none", name, bytes, path);
        int to = syscall(SYS_openat, AT_FDCWD, trace, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (to >= 0) {
            syscall(SYS_write, to, told, size);
            syscall(SYS_close, to);
        }
    }
    errno = saved;
    if (!meant)
        return NONE;
    if (strcmp(how, "slow") == 0 || strcmp(how, "late") == 0) {
        struct timespec pause = {arg / 1000, arg % 1000 * 1000000};
        nanosleep(&pause, NULL);
        errno = strcmp(how, "late") == 0 ? EIO : saved;
        return errno == EIO && strcmp(how, "late") == 0 ? FAILS : NONE;
    }
    if (strcmp(how, "eio") == 0 || strcmp(how, "torn") == 0)
        errno = EIO;
    if (strcmp(how, "enospc") == 0)
        errno = ENOSPC;
    if (strcmp(how, "torn") == 0)
        return TORN;
    if (strcmp(how, "half") == 0)
        return HALF;
    return strcmp(how, "none") == 0 ? NONE : FAILS;
}

static ssize_t torn(enum how how, ssize_t half, size_t all)
{
    if (how == HALF)
        return half < 0 ? half : (ssize_t)all;
    errno = EIO;
    return -1;
}

/* What a call that gives no count answers in place of being done: one that lies says that it was. */
static int undone(enum how how)
{
    return how == HALF ? 0 : -1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *from, size_t bytes)
{
    REAL(write);
    enum how how = meets(fd, "write", "write", bytes);
    if (how == FAILS)
        return -1;
    return how == NONE ? real(fd, from, bytes) : torn(how, real(fd, from, bytes / 2), bytes);
}

ssize_t pwrite(int fd, const void *from, size_t bytes, off_t at)
{
    REAL(pwrite);
    enum how how = meets(fd, "write", "pwrite", bytes);
    if (how == FAILS)
        return -1;
    return how == NONE ? real(fd, from, bytes, at) : torn(how, real(fd, from, bytes / 2, at), bytes);
}

ssize_t pwrite64(int fd, const void *from, size_t bytes, off64_t at)
{
    REAL(pwrite64);
    enum how how = meets(fd, "write", "pwrite", bytes);
    if (how == FAILS)
        return -1;
    return how == NONE ? real(fd, from, bytes, at) : torn(how, real(fd, from, bytes / 2, at), bytes);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    REAL(writev);
    size_t bytes = 0;
    for (int part = 0; part < count; part++)
        bytes += parts[part].iov_len;
    enum how how = meets(fd, "write", "writev", bytes);
    if (how == FAILS)
        return -1;
    if (how == NONE)
        return real(fd, parts, count);
    return torn(how, syscall(SYS_write, fd, parts[0].iov_base, parts[0].iov_len / 2), bytes);
}

int ftruncate64(int fd, off64_t length)
{
    REAL(ftruncate64);
    enum how how = meets(fd, "write", "ftruncate", 0);
    return how == NONE ? real(fd, length) : undone(how);
}

int ftruncate(int fd, off_t length)
{
    REAL(ftruncate);
    enum how how = meets(fd, "write", "ftruncate", 0);
    return how == NONE ? real(fd, length) : undone(how);
}

int fsync(int fd)
{
    REAL(fsync);
    enum how how = meets(fd, "flush", "fsync", 0);
    return how == NONE ? real(fd) : undone(how);
}

int fdatasync(int fd)
{
    REAL(fdatasync);
    enum how how = meets(fd, "flush", "fdatasync", 0);
    return how == NONE ? real(fd) : undone(how);
}

int sync_file_range(int fd, off64_t from, off64_t bytes, unsigned flags)
{
    REAL(sync_file_range);
    enum how how = meets(fd, "flush", "sync_file_range", 0);
    return how == NONE ? real(fd, from, bytes, flags) : undone(how);
}

ssize_t read(int fd, void *into, size_t bytes)
{
    REAL(read);
    return meets(fd, "read", "read", bytes) == NONE ? real(fd, into, bytes) : -1;
}

ssize_t pread(int fd, void *into, size_t bytes, off_t at)
{
    REAL(pread);
    return meets(fd, "read", "pread", bytes) == NONE ? real(fd, into, bytes, at) : -1;
}

ssize_t pread64(int fd, void *into, size_t bytes, off64_t at)
{
    REAL(pread64);
    return meets(fd, "read", "pread", bytes) == NONE ? real(fd, into, bytes, at) : -1;
}
