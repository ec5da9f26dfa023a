/* Stands between a process and its C library (LD_PRELOAD): notes each system call that changes something below one
 * folder, has one of them fail, or kills the process at one. So it sees what Python writes and what libgit2 writes.
 *
 * Calls are numbered from 0 in the order in which they are made; while one is under way no other is. Paths with ".."
 * are not understood. A mapping that is shared and writable counts as one write when it is unmapped, which is how
 * libgit2 fills its packs. What the C library's own streams write (fprintf) is not seen.
 *
 * A program that is started with CORAL_SHIM=<descriptor>:<folder> is watched from its beginning. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* The order is that of KINDS in syscalls.py. */
enum { CREATE, WRITE, TRUNCATE, SYNC, RENAME, LINK, UNLINK, MKDIR, RMDIR, CHMOD, OPEN, MARK };
enum { NOTHING, KILL_BEFORE, KILL_HALF, KILL_AFTER, FAIL, SHORT };
enum { PASS, REFUSE, HALVE, DIE };
enum { PARTS = 64 };

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX], unsynced[256];
static size_t root_length;
static int log_fd = -1;
static int action, wanted_errno, forever;
static long at, count;
static unsigned kinds;

void coral_watch(const char *folder, int log_to) {
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    log_fd = log_to;
    count = 0;
    action = NOTHING;
}

__attribute__((constructor)) static void watch_from_the_beginning(void) {
    const char *where = getenv("CORAL_SHIM"), *folder = where ? strchr(where, ':') : NULL;
    if (folder) coral_watch(folder + 1, atoi(where));
}

void coral_plan(int what, long number, int error, int from_then_on, unsigned which) {
    action = what, at = number, wanted_errno = error, forever = from_then_on, kinds = which;
    count = 0;
}

/* From now on an fsync of paths that match says yes and does nothing, as a disk that lies. */
void coral_lie(const char *pattern) { snprintf(unsynced, sizeof unsynced, "%s", pattern); }

long coral_count(void) { return count; }

static void die(void) { syscall(SYS_kill, getpid(), SIGKILL); }

static void note(int kind, const char *path, const char *target, uint64_t offset, const struct iovec *data, int parts,
                 uint64_t length) {
    if (log_fd < 0) return;
    uint32_t head[4] = {(uint32_t)kind, (uint32_t)strlen(path), (uint32_t)strlen(target), 0};
    uint64_t numbers[2] = {offset, length};
    struct iovec all[4 + PARTS] = {{head, sizeof head}, {numbers, sizeof numbers}, {(void *)path, head[1]},
                                   {(void *)target, head[2]}};
    long total = (long)(sizeof head + sizeof numbers + head[1] + head[2] + length);
    int used = 4;
    for (int i = 0; i < parts && length; i++, used++) {
        all[used] = data[i];
        if (all[used].iov_len > length) all[used].iov_len = length;
        length -= all[used].iov_len;
    }
    /* In one call: other processes may write to the same log. */
    if (syscall(SYS_writev, log_fd, all, used) != total) die();
}

void coral_mark(const char *data, size_t length) {
    struct iovec part = {(void *)data, length};
    pthread_mutex_lock(&turn);
    note(MARK, "", "", 0, &part, 1, length);
    pthread_mutex_unlock(&turn);
}

static int inside(const char *path) {
    return root_length && path && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

/* The path from the root on of one that may begin at a folder; unchanged while nothing is watched. */
static const char *absolute(int folder, const char *path, char *out) {
    char link[64];
    ssize_t length;
    if (!root_length || !path || path[0] == '/') return path;
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    if ((length = readlink(link, out, PATH_MAX - 1)) <= 0) return path;
    while (path[0] == '.' && path[1] == '/') path += 2;
    snprintf(out + length, (size_t)(PATH_MAX - length), "/%s", path);
    return out;
}

#define ABSOLUTE(folder, path) \
    char path##_buffer[PATH_MAX]; \
    path = absolute(folder, path, path##_buffer)

static int path_of(int fd, char *path) {
    char link[64];
    if (!root_length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return inside(path);
}

/* Begin a call that is watched; what is to become of it. The turn is held until done(). */
static int begin(int kind) {
    pthread_mutex_lock(&turn);
    if (!(kinds >> kind & 1) || action == NOTHING) return PASS;
    long number = count++;
    if (number != at && !(forever && number > at)) return PASS;
    if (action == KILL_BEFORE) die();
    if (action == FAIL) { errno = wanted_errno; return REFUSE; }
    if (action == SHORT) return kind == WRITE ? HALVE : PASS;
    return action == KILL_HALF && kind == WRITE ? HALVE : DIE;
}

static void done(int verdict) {
    if (verdict == DIE || (verdict == HALVE && action == KILL_HALF)) die();
    pthread_mutex_unlock(&turn);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define WATCHED(kind, call, on_success) \
    int verdict = begin(kind); \
    long result = verdict == REFUSE ? -1 : (long)(call); \
    int saved = errno; \
    if (result >= 0) { on_success; } \
    done(verdict); \
    errno = saved; \
    return result

/* -- opening */

static int opening(int (*real)(const char *, int, ...), const char *path, int flags, mode_t mode) {
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    if (!writes || !inside(path)) return real(path, flags, mode);
    int there = faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
    int kind = flags & O_CREAT && !there ? CREATE : flags & O_TRUNC ? TRUNCATE : OPEN;
    WATCHED(kind, real(path, flags, mode), if (kind != OPEN) note(kind, path, "", 0, NULL, 0, 0));
}

#define MODE \
    mode_t mode = 0; \
    if (flags & O_CREAT) { va_list list; va_start(list, flags); mode = va_arg(list, int); va_end(list); }

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE
    ABSOLUTE(AT_FDCWD, path);
    return opening(real, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE
    ABSOLUTE(AT_FDCWD, path);
    return opening(real, path, flags, mode);
}
int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int openat(int folder, const char *path, int flags, ...) {
    REAL(openat);
    MODE
    ABSOLUTE(folder, path);
    return path[0] == '/' ? open(path, flags, mode) : real(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
    REAL(openat64);
    MODE
    ABSOLUTE(folder, path);
    return path[0] == '/' ? open64(path, flags, mode) : real(folder, path, flags, mode);
}

/* C++ opens its files so; what it writes to them goes through write(). */
static FILE *streaming(FILE *(*real)(const char *, const char *), const char *path, const char *mode) {
    if (mode[0] == 'r' || !inside(path)) return real(path, mode);
    int there = faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
    int kind = !there ? CREATE : mode[0] == 'w' ? TRUNCATE : OPEN;
    int verdict = begin(kind);
    FILE *result = verdict == REFUSE ? NULL : real(path, mode);
    int saved = errno;
    if (result && kind != OPEN) note(kind, path, "", 0, NULL, 0, 0);
    done(verdict);
    errno = saved;
    return result;
}
FILE *fopen(const char *path, const char *mode) {
    REAL(fopen);
    ABSOLUTE(AT_FDCWD, path);
    return streaming(real, path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    REAL(fopen64);
    ABSOLUTE(AT_FDCWD, path);
    return streaming(real, path, mode);
}

/* -- data */

static ssize_t writing(int fd, const struct iovec *parts, int number, off_t offset, int positioned) {
    char path[PATH_MAX];
    struct iovec less[PARTS];
    size_t length = 0, left;
    if (!path_of(fd, path))
        return positioned ? syscall(SYS_pwritev, fd, parts, number, offset, 0) : syscall(SYS_writev, fd, parts, number);
    int verdict = begin(WRITE), kept = number < PARTS ? number : PARTS;
    for (int i = 0; i < kept; i++) length += parts[i].iov_len;
    left = verdict == HALVE ? (length + 1) / 2 : length;
    for (int i = 0; i < kept; i++) {
        less[i] = parts[i];
        if (less[i].iov_len > left) less[i].iov_len = left;
        left -= less[i].iov_len;
    }
    struct stat state;
    fstat(fd, &state);
    off_t where = positioned ? offset
                  : fcntl(fd, F_GETFL) & O_APPEND ? state.st_size
                                                  : lseek(fd, 0, SEEK_CUR);
    ssize_t result = -1;
    if (verdict != REFUSE)
        result = positioned ? syscall(SYS_pwritev, fd, less, kept, offset, 0) : syscall(SYS_writev, fd, less, kept);
    int saved = errno;
    if (result > 0) note(WRITE, path, "", (uint64_t)where, less, kept, (uint64_t)result);
    done(verdict);
    errno = saved;
    return result;
}

ssize_t write(int fd, const void *data, size_t length) {
    struct iovec part = {(void *)data, length};
    return writing(fd, &part, 1, 0, 0);
}
ssize_t writev(int fd, const struct iovec *parts, int number) { return writing(fd, parts, number, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    struct iovec part = {(void *)data, length};
    return writing(fd, &part, 1, offset, 1);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) { return pwrite(fd, data, length, offset); }
ssize_t pwritev(int fd, const struct iovec *parts, int number, off_t offset) {
    return writing(fd, parts, number, offset, 1);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int number, off64_t offset) {
    return writing(fd, parts, number, offset, 1);
}
ssize_t pwritev2(int fd, const struct iovec *parts, int number, off_t offset, int flags) {
    (void)flags;
    return writing(fd, parts, number, offset, 1);
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int number, off64_t offset, int flags) {
    return pwritev2(fd, parts, number, offset, flags);
}

int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(fd, size);
    WATCHED(TRUNCATE, real(fd, size), note(TRUNCATE, path, "", (uint64_t)size, NULL, 0, 0));
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

static struct { char *start; size_t length; uint64_t offset; char path[PATH_MAX]; } mapped[16];

static void *mapping(void *start, size_t length, int protection, int flags, int fd, off_t offset) {
    char path[PATH_MAX];
    void *result = (void *)syscall(SYS_mmap, start, length, protection, flags, fd, offset);
    if (result == MAP_FAILED || fd < 0 || !(flags & MAP_SHARED) || !(protection & PROT_WRITE) || !path_of(fd, path))
        return result;
    pthread_mutex_lock(&turn);
    for (int i = 0; i < 16; i++) {
        if (!mapped[i].start) {
            mapped[i].start = result, mapped[i].length = length, mapped[i].offset = (uint64_t)offset;
            strcpy(mapped[i].path, path);
            break;
        }
    }
    pthread_mutex_unlock(&turn);
    return result;
}

void *mmap(void *start, size_t length, int protection, int flags, int fd, off_t offset) {
    return mapping(start, length, protection, flags, fd, offset);
}
void *mmap64(void *start, size_t length, int protection, int flags, int fd, off64_t offset) {
    return mapping(start, length, protection, flags, fd, offset);
}
int munmap(void *start, size_t length) {
    for (int i = 0; root_length && i < 16; i++) {
        if (mapped[i].start == start) {
            int verdict = begin(WRITE);
            struct stat state;
            uint64_t size = stat(mapped[i].path, &state) ? 0 : (uint64_t)state.st_size, offset = mapped[i].offset;
            struct iovec part = {start, offset + length < size ? length : size > offset ? size - offset : 0};
            note(WRITE, mapped[i].path, "", offset, &part, 1, part.iov_len);
            mapped[i].start = NULL;
            done(verdict);
            break;
        }
    }
    return (int)syscall(SYS_munmap, start, length);
}

static int syncing(int (*real)(int), int fd) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(fd);
    if (unsynced[0] && !fnmatch(unsynced, path, 0)) return 0;
    WATCHED(SYNC, real(fd), note(SYNC, path, "", 0, NULL, 0, 0));
}
int fsync(int fd) { REAL(fsync); return syncing(real, fd); }
int fdatasync(int fd) { REAL(fdatasync); return syncing(real, fd); }

/* -- names */

int rename(const char *from, const char *to) {
    REAL(rename);
    ABSOLUTE(AT_FDCWD, from);
    ABSOLUTE(AT_FDCWD, to);
    if (!inside(from) && !inside(to)) return real(from, to);
    WATCHED(RENAME, real(from, to), note(RENAME, from, to, 0, NULL, 0, 0));
}
int renameat(int one, const char *from, int two, const char *to) {
    REAL(renameat);
    ABSOLUTE(one, from);
    ABSOLUTE(two, to);
    return from[0] == '/' && to[0] == '/' ? rename(from, to) : real(one, from, two, to);
}
int link(const char *from, const char *to) {
    REAL(link);
    ABSOLUTE(AT_FDCWD, from);
    ABSOLUTE(AT_FDCWD, to);
    if (!inside(to)) return real(from, to);
    WATCHED(LINK, real(from, to), note(LINK, from, to, 0, NULL, 0, 0));
}
int linkat(int one, const char *from, int two, const char *to, int flags) {
    REAL(linkat);
    ABSOLUTE(one, from);
    ABSOLUTE(two, to);
    if (from[0] != '/' || !inside(to)) return real(one, from, two, to, flags);
    WATCHED(LINK, real(one, from, two, to, flags), note(LINK, from, to, 0, NULL, 0, 0));
}
int unlink(const char *path) {
    REAL(unlink);
    ABSOLUTE(AT_FDCWD, path);
    if (!inside(path)) return real(path);
    WATCHED(UNLINK, real(path), note(UNLINK, path, "", 0, NULL, 0, 0));
}
int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    ABSOLUTE(folder, path);
    return path[0] == '/' && !flags ? unlink(path) : real(folder, path, flags);
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    ABSOLUTE(AT_FDCWD, path);
    if (!inside(path)) return real(path, mode);
    WATCHED(MKDIR, real(path, mode), note(MKDIR, path, "", 0, NULL, 0, 0));
}
int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(mkdirat);
    ABSOLUTE(folder, path);
    return path[0] == '/' ? mkdir(path, mode) : real(folder, path, mode);
}
int rmdir(const char *path) {
    REAL(rmdir);
    ABSOLUTE(AT_FDCWD, path);
    if (!inside(path)) return real(path);
    WATCHED(RMDIR, real(path), note(RMDIR, path, "", 0, NULL, 0, 0));
}
int chmod(const char *path, mode_t mode) {
    REAL(chmod);
    if (!inside(path)) return real(path, mode);
    WATCHED(CHMOD, real(path, mode), (void)0);
}
int fchmod(int fd, mode_t mode) {
    REAL(fchmod);
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(fd, mode);
    WATCHED(CHMOD, real(fd, mode), (void)0);
}
