/* floors: two tasks of the bars in plain C with nothing of a store around them: what this machine allows.

       floors gather ENTITIES CALLS   keys --> a slot each --> 50 doubles each --> a matrix of 100 rows
       floors windows ROWS ROUNDS OUT rows in any order --> by entity --> by time --> six windows at each --> as they came

   gather: rows lie in shared memory as a store's would, one hash probe away. No message, no key encoding, no versions,
   no nulls, no writer beside it. A few rows are on their way from memory while one is copied; several such distances
   are tried, the greatest being all of them, and the times of each are printed: {"distance": [nanoseconds per call, ...], ...}.

   windows: two threads, keys known to be small numbers, sums in plain doubles as differences of running sums, so a mean
   is right to nine digits or so, which a store may not be. ROWS holds three u64 (rows, entities, the first time), then
   the keys (i64), times (i64 us) and amounts (f64). OUT gets, per 1, 7 and 30 days, the counts (f64) and the means of
   the rows in [t - days, t), in the order of the rows. Prints {"seconds": [per round, ...]}. */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { HUGE = 2 << 20, COLLAPSE = 25 /* MADV_COLLAPSE, which older headers lack */ };
enum { LINE = 64, VALUES = 50, ROW_SIZE = 448, BATCH = 100 }; /* a row is 400 bytes: seven lines */
enum { THREADS = 2, PARTITIONS = 128, WINDOWS = 3, MOMENTS = 512 };

static const int64_t DAY_US = 86400000000;
static const int64_t DAYS[WINDOWS] = {1, 7, 30};
static const int DISTANCES[] = {2, 4, 8, 16, BATCH};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void *allocated(size_t size)
{
    void *memory = aligned_alloc(LINE, (size + LINE - 1) / LINE * LINE);
    if (!memory)
        fail("memory");
    return memory;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* any function that spreads keys will do; this one is the finalizer of splitmix64 */
static uint64_t spread(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* --- gather */

struct slot {
    uint64_t key_plus_1, row_at;
};

struct table {
    struct slot *slots;
    const char *rows;
    uint64_t mask;
};

static struct slot *slot_of(const struct table *table, uint64_t key)
{
    uint64_t i = spread(key) & table->mask;
    while (table->slots[i].key_plus_1 && table->slots[i].key_plus_1 != key + 1)
        i = (i + 1) & table->mask;
    return &table->slots[i];
}

/* in huge pages where the system makes them, as the store's memory is */
static char *shared_memory(size_t size)
{
    size = (size + HUGE - 1) / HUGE * HUGE;
    int file = memfd_create("floors", MFD_CLOEXEC);
    char *place = mmap(NULL, size + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (file < 0 || ftruncate(file, (off_t)size) || place == MAP_FAILED)
        fail("shared memory");
    place = (char *)(((uintptr_t)place + HUGE - 1) / HUGE * HUGE);
    char *memory = mmap(place, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, file, 0);
    if (memory == MAP_FAILED)
        fail("shared memory");
    madvise(memory, size, COLLAPSE);
    return memory;
}

static struct table filled_table(uint64_t entities)
{
    uint64_t slots = 1;
    while (slots < 2 * entities)
        slots *= 2;
    char *memory = shared_memory(slots * sizeof(struct slot) + entities * ROW_SIZE);
    char *rows = memory + slots * sizeof(struct slot);
    struct table table = {(struct slot *)memory, rows, slots - 1};
    for (uint64_t key = 0; key < entities; key++) {
        *slot_of(&table, key) = (struct slot){key + 1, key * ROW_SIZE};
        for (int i = 0; i < VALUES; i++)
            ((double *)(rows + key * ROW_SIZE))[i] = (double)(key + (uint64_t)i);
    }
    return table;
}

static void gather(const struct table *table, const uint64_t *keys, int distance, double *out)
{
    uint64_t at[BATCH];
    for (int i = 0; i < BATCH; i++)
        __builtin_prefetch(&table->slots[spread(keys[i]) & table->mask]);
    for (int i = 0; i < BATCH + distance; i++) {
        if (i < BATCH) {
            at[i] = slot_of(table, keys[i])->row_at;
            for (int line = 0; line < ROW_SIZE; line += LINE) {
                if (distance < BATCH)
                    __builtin_prefetch(table->rows + at[i] + line, 0, 3);
                else /* all of them before one is copied: more than the first-level cache holds */
                    __builtin_prefetch(table->rows + at[i] + line, 0, 2);
            }
        }
        if (i >= distance)
            memcpy(out + (i - distance) * VALUES, table->rows + at[i - distance], VALUES * sizeof(double));
    }
}

static int measure_gather(uint64_t entities, size_t calls)
{
    struct table table = filled_table(entities);
    uint64_t *keys = allocated(calls * BATCH * sizeof *keys);
    double *out = allocated(BATCH * VALUES * sizeof *out);
    printf("{");
    for (size_t d = 0; d < sizeof DISTANCES / sizeof *DISTANCES; d++) {
        for (size_t i = 0; i < calls * BATCH; i++)
            keys[i] = spread(d * calls * BATCH + i) % entities;
        printf("%s\"%d\": [", d ? ", " : "", DISTANCES[d]);
        for (size_t call = 0; call < calls; call++) {
            uint64_t *asked = keys + call * BATCH;
            uint64_t began = now_ns();
            gather(&table, asked, DISTANCES[d], out);
            uint64_t took = now_ns() - began;
            for (int i = 0; i < BATCH; i++) {
                if (out[i * VALUES] != (double)asked[i] || out[i * VALUES + 49] != (double)(asked[i] + 49)) {
                    fprintf(stderr, "wrong row of key %llu\n", (unsigned long long)asked[i]);
                    return 1;
                }
            }
            printf("%s%llu", call ? ", " : "", (unsigned long long)took);
        }
        printf("]");
    }
    printf("}\n");
    return 0;
}

/* --- windows */

struct row {
    int64_t time_us;
    double amount;
    uint32_t key, place;
};

static struct {
    size_t rows, entities;
    int64_t first_us;
    const int64_t *keys, *times_us;
    const double *amounts;
    struct row *parted;
    size_t counts[THREADS][PARTITIONS], starts[PARTITIONS + 1];
    double *out[WINDOWS][2];
} job;

/* memory of one thread, as large as one partition may be */
struct room {
    struct row *by_entity, *by_time;
    double *sums;
    uint32_t *ends; /* per entity */
};

static size_t part_of(int64_t key)
{
    return (size_t)key % PARTITIONS;
}

static void *count_rows(void *argument)
{
    size_t thread = (size_t)argument, end = job.rows * (thread + 1) / THREADS;
    for (size_t i = job.rows * thread / THREADS; i < end; i++)
        job.counts[thread][part_of(job.keys[i])]++;
    return NULL;
}

static void *place_rows(void *argument)
{
    size_t thread = (size_t)argument, end = job.rows * (thread + 1) / THREADS;
    for (size_t i = job.rows * thread / THREADS; i < end; i++)
        job.parted[job.counts[thread][part_of(job.keys[i])]++] =
            (struct row){job.times_us[i], job.amounts[i], (uint32_t)job.keys[i], (uint32_t)i};
    return NULL;
}

/* into MOMENTS parts of the 30 days, then by insertion: a part holds less than one row of an entity, or a few */
static void sort_by_time(struct row *rows, struct row *sorted, size_t count)
{
    uint32_t ends[MOMENTS + 1] = {0};
    double per_us = (double)MOMENTS / (double)(30 * DAY_US);
    for (size_t i = 0; i < count; i++)
        ends[(size_t)((double)(rows[i].time_us - job.first_us) * per_us) + 1]++;
    for (int i = 0; i < MOMENTS; i++)
        ends[i + 1] += ends[i];
    for (size_t i = 0; i < count; i++)
        sorted[ends[(size_t)((double)(rows[i].time_us - job.first_us) * per_us)]++] = rows[i];
    for (size_t i = 1; i < count; i++) {
        struct row row = sorted[i];
        size_t at = i;
        for (; at > 0 && sorted[at - 1].time_us > row.time_us; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = row;
    }
}

static void write_windows(const struct row *rows, size_t count, double *sums)
{
    size_t high = 0, low[WINDOWS] = {0};
    sums[0] = 0;
    for (size_t i = 0; i < count; i++)
        sums[i + 1] = sums[i] + rows[i].amount;
    for (size_t i = 0; i < count; i++) {
        while (rows[high].time_us < rows[i].time_us)
            high++;
        for (int w = 0; w < WINDOWS; w++) {
            while (rows[low[w]].time_us < rows[i].time_us - DAYS[w] * DAY_US)
                low[w]++;
            double counted = (double)(high - low[w]);
            job.out[w][0][rows[i].place] = counted;
            job.out[w][1][rows[i].place] = (sums[high] - sums[low[w]]) / counted;
        }
    }
}

static void *answer_partitions(void *argument)
{
    size_t thread = (size_t)argument, largest = 0;
    for (size_t p = thread; p < PARTITIONS; p += THREADS)
        largest = job.starts[p + 1] - job.starts[p] > largest ? job.starts[p + 1] - job.starts[p] : largest;
    struct room room = {
        allocated(largest * sizeof(struct row)), allocated(largest * sizeof(struct row)),
        allocated((largest + 1) * sizeof(double)), allocated((job.entities / PARTITIONS + 2) * sizeof(uint32_t)),
    };
    for (size_t p = thread; p < PARTITIONS; p += THREADS) {
        const struct row *rows = job.parted + job.starts[p];
        size_t count = job.starts[p + 1] - job.starts[p], entities = job.entities / PARTITIONS + 1;
        memset(room.ends, 0, (entities + 1) * sizeof *room.ends);
        for (size_t i = 0; i < count; i++)
            room.ends[rows[i].key / PARTITIONS + 1]++;
        for (size_t e = 0; e < entities; e++)
            room.ends[e + 1] += room.ends[e];
        for (size_t i = 0; i < count; i++)
            room.by_entity[room.ends[rows[i].key / PARTITIONS]++] = rows[i];
        for (size_t e = 0, begin = 0; e < entities; begin = room.ends[e++]) {
            sort_by_time(room.by_entity + begin, room.by_time, room.ends[e] - begin);
            write_windows(room.by_time, room.ends[e] - begin, room.sums);
        }
    }
    free(room.by_entity);
    free(room.by_time);
    free(room.sums);
    free(room.ends);
    return NULL;
}

static void in_threads(void *(*run)(void *))
{
    pthread_t threads[THREADS];
    for (size_t i = 1; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, run, (void *)i))
            fail("thread");
    run((void *)0);
    for (size_t i = 1; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

static void answer_rows(void)
{
    memset(job.counts, 0, sizeof job.counts);
    in_threads(count_rows);
    size_t at = 0;
    for (size_t p = 0; p < PARTITIONS; p++) {
        job.starts[p] = at;
        for (size_t thread = 0; thread < THREADS; thread++) {
            size_t count = job.counts[thread][p];
            job.counts[thread][p] = at;
            at += count;
        }
    }
    job.starts[PARTITIONS] = at;
    in_threads(place_rows);
    in_threads(answer_partitions);
}

static int measure_windows(const char *rows_path, int rounds, const char *out_path)
{
    FILE *file = fopen(rows_path, "rb");
    uint64_t head[3];
    if (!file || fread(head, sizeof head, 1, file) != 1)
        fail(rows_path);
    job.rows = head[0];
    job.entities = head[1];
    job.first_us = (int64_t)head[2];
    char *columns = allocated(job.rows * 24);
    if (fread(columns, 24, job.rows, file) != job.rows)
        fail(rows_path);
    fclose(file);
    job.keys = (int64_t *)columns;
    job.times_us = (int64_t *)(columns + 8 * job.rows);
    job.amounts = (double *)(columns + 16 * job.rows);
    job.parted = allocated(job.rows * sizeof *job.parted);
    for (int w = 0; w < WINDOWS; w++)
        for (int i = 0; i < 2; i++)
            job.out[w][i] = allocated(job.rows * sizeof(double));
    printf("{\"seconds\": [");
    for (int round = 0; round < rounds; round++) {
        uint64_t began = now_ns();
        answer_rows();
        printf("%s%.9f", round ? ", " : "", (double)(now_ns() - began) / 1e9);
    }
    printf("]}\n");
    file = fopen(out_path, "wb");
    if (!file)
        fail(out_path);
    for (int w = 0; w < WINDOWS; w++)
        for (int i = 0; i < 2; i++)
            if (fwrite(job.out[w][i], sizeof(double), job.rows, file) != job.rows)
                fail(out_path);
    if (fclose(file))
        fail(out_path);
    return 0;
}

int main(int count, char **words)
{
    if (count == 4 && !strcmp(words[1], "gather"))
        return measure_gather(strtoull(words[2], NULL, 10), strtoull(words[3], NULL, 10));
    if (count == 5 && !strcmp(words[1], "windows"))
        return measure_windows(words[2], atoi(words[3]), words[4]);
    fprintf(stderr, "floors gather ENTITIES CALLS | floors windows ROWS ROUNDS OUT\n");
    return 2;
}
