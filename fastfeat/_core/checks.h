/* Assertions of the core, and the bugs that prove its tests: live in debug builds (FASTFEAT_DEBUG), nothing otherwise.

   A debug build run with FASTFEAT_SEEDED_BUG=name behaves as if it had that bug, so that a test can show that it would
   catch it. The names stand where the bugs are. */
#ifndef FASTFEAT_CHECKS_H
#define FASTFEAT_CHECKS_H

#ifdef FASTFEAT_DEBUG
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define FF_IS_DEBUG 1
#define ff_check(condition)                                                          \
    do {                                                                             \
        if (!(condition)) {                                                          \
            fprintf(stderr, "fastfeat: check failed at %s:%d\n", __FILE__, __LINE__); \
            abort();                                                                 \
        }                                                                            \
    } while (0)
static inline int ff_seeded_bug(const char *name) {
    const char *seeded = getenv("FASTFEAT_SEEDED_BUG");
    return seeded != NULL && strcmp(seeded, name) == 0;
}
/* Freed bytes turn to nonsense, so that whoever still reads them is found out. */
#define ff_poison(at, size) memset((at), 0xDD, (size))
#else
#define FF_IS_DEBUG 0
#define ff_check(condition) ((void)0)
#define ff_seeded_bug(name) 0
#define ff_poison(at, size) ((void)0)
#endif

#endif
