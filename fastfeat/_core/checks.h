/* Assertions of the core: live in debug builds (FASTFEAT_DEBUG), nothing otherwise. */
#ifndef FASTFEAT_CHECKS_H
#define FASTFEAT_CHECKS_H

#ifdef FASTFEAT_DEBUG
#include <stdio.h>
#include <stdlib.h>
#define ff_check(condition)                                                          \
    do {                                                                             \
        if (!(condition)) {                                                          \
            fprintf(stderr, "fastfeat: check failed at %s:%d\n", __FILE__, __LINE__); \
            abort();                                                                 \
        }                                                                            \
    } while (0)
#else
#define ff_check(condition) ((void)0)
#endif

#endif
