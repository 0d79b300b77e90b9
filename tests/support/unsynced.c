/* A disk whose power can be cut, for machines without loop devices: preloaded into a process, it notes what each change of a file or a
 * name below one folder replaced, until a sync makes that change last. When the power goes everything that no sync has made
 * last is taken back, the latest first, and the process ends at once. Syncs of a file make its data last, those of a
 * folder the names in it. Changes by mmap are not seen. No part of the provider.
 *
 *   UNSYNCED_UNDER  the folder
 *   UNSYNCED_GRAVE  a folder beside it, on the same file system, for what was removed or replaced and may come back
 *   UNSYNCED_CUT    a file: the power goes when it is there
 *   UNSYNCED_END    set: the power goes when the process has ended, as well as it did
 *   UNSYNCED_LIES   set: syncs say that they are done, and nothing lasts
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { DATA, CREATED, FOLDER, RENAMED, REMOVED };

struct change {
    struct change *before;
    enum kind kind;
    long number;
    /* of the file, and of the folder that has the name */
    ino_t inode, folder;
    int fd;
    off_t at, size;
    size_t bytes;
    char *old;
    char *path, *from, *grave;
};

/* A file of ours for each inode that was written to: it outlives names and the process's own descriptors. */
struct file {
    struct file *next;
    ino_t inode;
    int fd;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct change *last;
static struct file *files;
static long graves, numbers;
/* in the thread that takes everything back */
static __thread int takes_back;

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static void broken(const char *what)
{
    dprintf(2, "unsynced: %s: %s\n", what, strerror(errno));
    abort();
}

static int is_under(const char *path)
{
    const char *under = getenv("UNSYNCED_UNDER");
    if (!under || takes_back)
        return 0;
    size_t length = strlen(under);
    return strncmp(path, under, length) == 0 && (path[length] == '/' || path[length] == 0);
}

/* Whether that folder has the name of the one that power is cut of. */
static int is_above(const char *path)
{
    const char *under = getenv("UNSYNCED_UNDER");
    return under && strncmp(path, under, strlen(path)) == 0;
}

/* Whether `fd` is a file (or, where that is asked for, a folder) below the folder, or the folder above it. */
static int concerns(int fd, mode_t type, struct stat *is)
{
    char link[64], path[4096];
    int saved = errno, does = 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length > 0) {
        path[length] = 0;
        does = (is_under(path) || (type == S_IFDIR && is_above(path))) && fstat(fd, is) == 0
            && (is->st_mode & S_IFMT) == type;
    }
    errno = saved;
    return does;
}

static ino_t folder_of(const char *path)
{
    char folder[4096];
    struct stat is;
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (!slash)
        broken(path);
    *slash = 0;
    return stat(folder, &is) == 0 ? is.st_ino : 0;
}

static struct change *note(enum kind kind, ino_t inode)
{
    struct change *change = calloc(1, sizeof *change);
    if (!change)
        broken("memory");
    change->kind = kind;
    change->number = ++numbers;
    change->inode = inode;
    change->before = last;
    last = change;
    return change;
}

static int own_fd(int fd, ino_t inode)
{
    for (struct file *file = files; file; file = file->next)
        if (file->inode == inode)
            return file->fd;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    struct file *file = calloc(1, sizeof *file);
    file->inode = inode;
    file->fd = open(link, O_RDWR | O_CLOEXEC);
    if (file->fd < 0)
        broken(link);
    file->next = files;
    files = file;
    return file->fd;
}

/* What stands at `at`, before `bytes` there become others and the file's end moves. */
static void before_change(int fd, const struct stat *is, off_t at, size_t bytes)
{
    struct change *change = note(DATA, is->st_ino);
    change->fd = own_fd(fd, is->st_ino);
    change->at = at;
    change->size = is->st_size;
    if (at < is->st_size && bytes > 0) {
        size_t there = is->st_size - at;
        change->bytes = bytes < there ? bytes : there;
        change->old = malloc(change->bytes);
        if (!change->old || pread(change->fd, change->old, change->bytes, at) != (ssize_t)change->bytes)
            broken("what was there");
    }
}

static char *new_grave(void)
{
    char grave[4200];
    snprintf(grave, sizeof grave, "%s/%ld-%ld", getenv("UNSYNCED_GRAVE"), (long)getpid(), graves++);
    return strdup(grave);
}

static char *bury(const char *path)
{
    char *grave = new_grave();
    if (link(path, grave) == 0)
        return grave;
    free(grave);
    return NULL;
}

static void take_back(struct change *change)
{
    switch (change->kind) {
    case DATA:
        if (ftruncate(change->fd, change->size) != 0)
            broken("the size before");
        if (change->bytes && pwrite(change->fd, change->old, change->bytes, change->at) != (ssize_t)change->bytes)
            broken("the bytes before");
        break;
    case CREATED:
        unlink(change->path);
        break;
    case FOLDER:
        /* whatever is in it, and may have been made to last there, nobody finds any more */
        rename(change->path, change->grave);
        break;
    case RENAMED:
        rename(change->path, change->from);
        if (change->grave)
            rename(change->grave, change->path);
        break;
    case REMOVED:
        if (change->grave)
            rename(change->grave, change->path);
        break;
    }
}

/* Takes back what no sync has made last. Called once, under the lock, by which nothing else happens any more. */
static long lose(void)
{
    long lost = 0;
    takes_back = 1;
    for (struct change *change = last; change; change = change->before, lost++)
        take_back(change);
    return lost;
}

static void *watch(void *unused)
{
    (void)unused;
    const char *cut = getenv("UNSYNCED_CUT");
    struct timespec pause = {0, 1000000};
    while (access(cut, F_OK) != 0)
        nanosleep(&pause, NULL);
    pthread_mutex_lock(&lock);
    dprintf(1, "lost %ld\n", lose());
    kill(getpid(), SIGKILL);
    return NULL;
}

__attribute__((destructor)) static void end(void)
{
    if (!getenv("UNSYNCED_END"))
        return;
    pthread_mutex_lock(&lock);
    dprintf(2, "lost %ld\n", lose());
}

__attribute__((constructor)) static void begin(void)
{
    pthread_t thread;
    if (getenv("UNSYNCED_CUT") && pthread_create(&thread, NULL, watch, NULL) != 0)
        broken("a thread");
}

static void lasts(int fd)
{
    struct stat is;
    struct timespec disk = {0, 500000};
    int is_file = concerns(fd, S_IFREG, &is);
    if (getenv("UNSYNCED_LIES") || (!is_file && !concerns(fd, S_IFDIR, &is)))
        return;
    pthread_mutex_lock(&lock);
    long newest = numbers;
    pthread_mutex_unlock(&lock);
    nanosleep(&disk, NULL);
    pthread_mutex_lock(&lock);
    /* what came meanwhile waits for the next one */
    for (struct change **at = &last; *at;) {
        struct change *change = *at;
        ino_t of = !is_file ? change->folder : change->kind == DATA ? change->inode : 0;
        if (change->number <= newest && of == is.st_ino) {
            *at = change->before;
            if (change->grave)
                unlink(change->grave);
            free(change->old);
            free(change->path);
            free(change->from);
            free(change->grave);
            free(change);
        } else {
            at = &change->before;
        }
    }
    pthread_mutex_unlock(&lock);
}

int fsync(int fd)
{
    lasts(fd);
    return 0;
}

int fdatasync(int fd)
{
    lasts(fd);
    return 0;
}

static void before_write(int fd, size_t bytes, off_t at)
{
    struct stat is;
    if (!concerns(fd, S_IFREG, &is))
        return;
    if (at < 0)
        at = fcntl(fd, F_GETFL) & O_APPEND ? is.st_size : lseek(fd, 0, SEEK_CUR);
    before_change(fd, &is, at, bytes);
}

#define WRITES(fd, bytes, at, call) \
    do { \
        if (takes_back) \
            return call; \
        pthread_mutex_lock(&lock); \
        before_write(fd, bytes, at); \
        ssize_t done = call; \
        pthread_mutex_unlock(&lock); \
        return done; \
    } while (0)

ssize_t write(int fd, const void *from, size_t bytes)
{
    REAL(write);
    WRITES(fd, bytes, -1, real(fd, from, bytes));
}

ssize_t pwrite(int fd, const void *from, size_t bytes, off_t at)
{
    REAL(pwrite);
    WRITES(fd, bytes, at, real(fd, from, bytes, at));
}

ssize_t pwrite64(int fd, const void *from, size_t bytes, off64_t at)
{
    REAL(pwrite64);
    WRITES(fd, bytes, at, real(fd, from, bytes, at));
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    REAL(writev);
    size_t bytes = 0;
    for (int part = 0; part < count; part++)
        bytes += parts[part].iov_len;
    WRITES(fd, bytes, -1, real(fd, parts, count));
}

static void before_cut(int fd, off_t length)
{
    struct stat is;
    if (concerns(fd, S_IFREG, &is))
        before_change(fd, &is, length, length < is.st_size ? is.st_size - length : 0);
}

int ftruncate(int fd, off_t length)
{
    REAL(ftruncate);
    if (takes_back)
        return real(fd, length);
    pthread_mutex_lock(&lock);
    before_cut(fd, length);
    int done = real(fd, length);
    pthread_mutex_unlock(&lock);
    return done;
}

int ftruncate64(int fd, off64_t length)
{
    return ftruncate(fd, length);
}

static int opened(int (*real)(const char *, int, ...), const char *path, int flags, mode_t mode)
{
    if (!(flags & (O_CREAT | O_TRUNC)) || !is_under(path))
        return real(path, flags, mode);
    struct stat is;
    pthread_mutex_lock(&lock);
    int is_new = stat(path, &is) != 0;
    if (!is_new && flags & O_TRUNC) {
        int before = real(path, O_RDWR | O_CLOEXEC);
        if (before < 0)
            broken(path);
        before_change(before, &is, 0, is.st_size);
        close(before);
    }
    int fd = real(path, flags, mode);
    if (fd >= 0 && is_new && fstat(fd, &is) == 0) {
        struct change *change = note(CREATED, is.st_ino);
        change->folder = folder_of(path);
        change->path = strdup(path);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

int open(const char *path, int flags, ...)
{
    REAL(open);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(real, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    REAL(open64);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(real, path, flags, mode);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(mkdir);
    struct stat is;
    if (!is_under(path))
        return real(path, mode);
    pthread_mutex_lock(&lock);
    int done = real(path, mode);
    if (done == 0 && stat(path, &is) == 0) {
        struct change *change = note(FOLDER, is.st_ino);
        change->folder = folder_of(path);
        change->path = strdup(path);
        change->grave = new_grave();
    }
    pthread_mutex_unlock(&lock);
    return done;
}

int rename(const char *from, const char *to)
{
    REAL(rename);
    struct stat is;
    if (!is_under(to))
        return real(from, to);
    pthread_mutex_lock(&lock);
    char *grave = stat(to, &is) == 0 ? bury(to) : NULL;
    int done = real(from, to);
    if (done == 0 && stat(to, &is) == 0) {
        struct change *change = note(RENAMED, is.st_ino);
        change->folder = folder_of(to);
        change->from = strdup(from);
        change->path = strdup(to);
        change->grave = grave;
    }
    pthread_mutex_unlock(&lock);
    return done;
}

int unlink(const char *path)
{
    REAL(unlink);
    struct stat is;
    if (!is_under(path) || stat(path, &is) != 0)
        return real(path);
    pthread_mutex_lock(&lock);
    char *grave = bury(path);
    int done = real(path);
    if (done == 0) {
        struct change *change = note(REMOVED, 0);
        change->folder = folder_of(path);
        change->path = strdup(path);
        change->grave = grave;
    }
    pthread_mutex_unlock(&lock);
    return done;
}
