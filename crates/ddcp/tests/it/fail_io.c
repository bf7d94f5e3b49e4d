/* Loaded into the program by LD_PRELOAD: makes one of its operations on files below a folder fail, or all from one
   on. The numbers come from the environment:

   FAIL_BELOW  the folder
   FAIL_ERRNO  what the operation fails with; ENOSPC is no reason for reading and syncing to fail, so that with it
               only the others are counted
   FAIL_AT     which operation fails, from 1; 0 for none
   FAIL_ON     if set, all that follow fail too
   FAIL_COUNT  a file that gets the number of operations when the program ends

   Half of what a failing write was given is written: the file is not as before, nor as it should be. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum kind { FOR_READING, FOR_SPACE };

static atomic_long operations;

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static int is_below(const char *path) {
    const char *folder = getenv("FAIL_BELOW");
    size_t length = folder ? strlen(folder) : 0;
    return length > 0 && strncmp(path, folder, length) == 0;
}

static int is_open_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return is_below(path);
}

/* Whether opening the path, to create it where it is missing, takes space below the folder. */
static int makes_file(const char *path) {
    int before = errno;
    int makes = is_below(path) && access(path, F_OK) != 0;
    errno = before;
    return makes;
}

/* Counts an operation on a file that is watched; whether it is to fail. Leaves errno alone if not. */
static int fails(enum kind kind) {
    long code = number("FAIL_ERRNO"), at = number("FAIL_AT");
    if (kind == FOR_READING && code == ENOSPC) return 0;
    long operation = atomic_fetch_add(&operations, 1) + 1;
    if (at == 0 || operation < at || (operation > at && !getenv("FAIL_ON"))) return 0;
    errno = (int)code;
    return 1;
}

static int fails_at(int fd, enum kind kind) {
    int before = errno;
    if (!is_open_below(fd)) {
        errno = before;
        return 0;
    }
    errno = before;
    return fails(kind);
}

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("FAIL_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "%ld\n", atomic_load(&operations));
    fclose(file);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t read(int fd, void *buffer, size_t size) {
    if (fails_at(fd, FOR_READING)) return -1;
    return REAL(read)(fd, buffer, size);
}

ssize_t write(int fd, const void *buffer, size_t size) {
    if (fails_at(fd, FOR_SPACE)) {
        int code = errno;
        REAL(write)(fd, buffer, size / 2);
        errno = code;
        return -1;
    }
    return REAL(write)(fd, buffer, size);
}

#define POSITIONED(read_name, write_name, offset_type)                                        \
    ssize_t read_name(int fd, void *buffer, size_t size, offset_type offset) {                \
        if (fails_at(fd, FOR_READING)) return -1;                                             \
        return REAL(read_name)(fd, buffer, size, offset);                                     \
    }                                                                                         \
    ssize_t write_name(int fd, const void *buffer, size_t size, offset_type offset) {         \
        if (fails_at(fd, FOR_SPACE)) {                                                        \
            int code = errno;                                                                 \
            REAL(write_name)(fd, buffer, size / 2, offset);                                   \
            errno = code;                                                                     \
            return -1;                                                                        \
        }                                                                                     \
        return REAL(write_name)(fd, buffer, size, offset);                                    \
    }

POSITIONED(pread, pwrite, off_t)
POSITIONED(pread64, pwrite64, off64_t)

#define ON_OPEN_FILE(name, kind, parameters, arguments)                                       \
    int name parameters {                                                                     \
        if (fails_at(fd, kind)) return -1;                                                    \
        return REAL(name) arguments;                                                          \
    }

ON_OPEN_FILE(fsync, FOR_READING, (int fd), (fd))
ON_OPEN_FILE(fdatasync, FOR_READING, (int fd), (fd))
ON_OPEN_FILE(ftruncate, FOR_SPACE, (int fd, off_t size), (fd, size))
ON_OPEN_FILE(ftruncate64, FOR_SPACE, (int fd, off64_t size), (fd, size))

#define OPEN(name)                                                                            \
    int name(const char *path, int flags, ...) {                                              \
        va_list rest;                                                                         \
        va_start(rest, flags);                                                                \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                             \
        va_end(rest);                                                                         \
        if (flags & O_CREAT && makes_file(path) && fails(FOR_SPACE)) return -1;               \
        return REAL(name)(path, flags, mode);                                                 \
    }

OPEN(open)
OPEN(open64)

int rename(const char *from, const char *to) {
    if (is_below(to) && fails(FOR_SPACE)) return -1;
    return REAL(rename)(from, to);
}

int mkdir(const char *path, mode_t mode) {
    if (is_below(path) && fails(FOR_SPACE)) return -1;
    return REAL(mkdir)(path, mode);
}

int unlink(const char *path) {
    if (is_below(path) && fails(FOR_READING)) return -1;
    return REAL(unlink)(path);
}
