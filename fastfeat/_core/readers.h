/* What a process knows of the reader table it pins in, and what happens to that when it forks.

   A slot of a shared table is a process's own while it holds the lock of that byte of the table's file. The lock belongs
   to the open file description, which a child shares: it would keep its parent's slots alive after the parent's death. So
   a child opens the file anew, under no lock, and forgets the slots. */
#ifndef FASTFEAT_READERS_H
#define FASTFEAT_READERS_H

#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define FF_OWN_MAX 128
#define FF_LOST (-2)

typedef struct Readers {
    void *table;
    int fd;                  /* of the table's file; -1: a private table; FF_LOST: a child could not open it */
    uint32_t is_writer;      /* in the process that may write the arena */
    uint32_t lock;           /* of claiming */
    uint32_t own_count;
    uint16_t own[FF_OWN_MAX];
    struct Readers *next;
} Readers;

static pthread_mutex_t ff_readers_mutex = PTHREAD_MUTEX_INITIALIZER;
static Readers *ff_readers = NULL;

static void ff_before_fork(void) { pthread_mutex_lock(&ff_readers_mutex); }
static void ff_in_parent(void) { pthread_mutex_unlock(&ff_readers_mutex); }

static void ff_in_child(void) {
    char path[32];
    for (Readers *each = ff_readers; each != NULL; each = each->next) {
        int old = each->fd;
        snprintf(path, sizeof path, "/proc/self/fd/%d", old);
        each->fd = old < 0 ? FF_LOST : open(path, O_RDWR | O_CLOEXEC);
        if (old >= 0) close(old);
        if (each->fd < 0) each->fd = FF_LOST;
        each->own_count = 0;
        each->is_writer = 0;
        each->lock = 0;
    }
    pthread_mutex_unlock(&ff_readers_mutex);
}

/* Call once, when the module is imported. */
static int ff_readers_watch_forks(void) { return pthread_atfork(ff_before_fork, ff_in_parent, ff_in_child); }

static void ff_readers_add(Readers *readers) {
    pthread_mutex_lock(&ff_readers_mutex);
    readers->next = ff_readers;
    ff_readers = readers;
    pthread_mutex_unlock(&ff_readers_mutex);
}

static void ff_readers_drop(Readers *readers) {
    pthread_mutex_lock(&ff_readers_mutex);
    for (Readers **link = &ff_readers; *link != NULL; link = &(*link)->next) {
        if (*link == readers) {
            *link = readers->next;
            break;
        }
    }
    pthread_mutex_unlock(&ff_readers_mutex);
}

static int ff_lock_call(int fd, int call, int type, int64_t at, int *held) {
    struct flock lock;
    int code;
    memset(&lock, 0, sizeof lock);
    lock.l_type = (short)type;
    lock.l_whence = SEEK_SET;
    lock.l_start = at;
    lock.l_len = 1;
    code = fcntl(fd, call, &lock);
    if (held != NULL) *held = lock.l_type != F_UNLCK;
    return code;
}

/* Take the lock of byte `at`: 1, or 0 where somebody else has it (or the table has no file). */
static int ff_lock_take(int fd, int64_t at) { return ff_lock_call(fd, F_OFD_SETLK, F_WRLCK, at, NULL) == 0; }
static void ff_lock_drop(int fd, int64_t at) { ff_lock_call(fd, F_OFD_SETLK, F_UNLCK, at, NULL); }

/* 1 where somebody else holds it. */
static int ff_lock_is_held(int fd, int64_t at) {
    int held = 0;
    return ff_lock_call(fd, F_OFD_GETLK, F_WRLCK, at, &held) == 0 && held;
}

#endif
