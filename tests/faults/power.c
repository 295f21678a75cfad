/* Preloaded into a server: a disk of which is known what it has confirmed. For every file that is synced
 * whose name ends in .wal, .wal.checkpoint or .mark, POWER_RECORD/<inode> then says how large it was when
 * the sync began, and for a mark, what was in it. Each sync of a log takes up to POWER_DELAY_US. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int ends_with(const char *path, const char *end) {
    size_t length = strlen(path), wanted = strlen(end);
    return length >= wanted && strcmp(path + length - wanted, end) == 0;
}

static void put(const char *record, const struct stat *of, const char *end, const char *text, size_t size) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%lu%s", record, (unsigned long)of->st_ino, end);
    int file = open(path, O_WRONLY | O_CREAT, 0600);
    if (file >= 0) {
        if (pwrite(file, text, size, 0) < 0)
            abort();
        close(file);
    }
}

static int synced(int fd, int (*real)(int)) {
    const char *record = getenv("POWER_RECORD"), *delay = getenv("POWER_DELAY_US");
    char link[64], path[4096], mark[512], text[64];
    struct stat before;
    ssize_t length, noted = 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (!record || length < 0 || fstat(fd, &before) < 0)
        return real(fd);
    path[length] = 0;
    int is_mark = ends_with(path, ".mark");
    int is_log = ends_with(path, ".wal") || ends_with(path, ".wal.checkpoint");
    if (is_mark)
        noted = pread(fd, mark, sizeof mark, 0);
    if (is_log && delay && atol(delay) > 0)
        usleep((useconds_t)(random() % atol(delay)));
    int result = real(fd);
    if (result == 0 && is_log) {
        snprintf(text, sizeof text, "%020lld\n", (long long)before.st_size);
        put(record, &before, ".size", text, strlen(text));
    }
    if (result == 0 && is_mark && noted > 0)
        put(record, &before, ".mark", mark, (size_t)noted);
    return result;
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return synced(fd, real);
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return synced(fd, real);
}
