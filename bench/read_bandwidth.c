// SPDX-License-Identifier: Apache-2.0
// Prints the rate in bytes per second at which THREADS threads together read a buffer of BYTES, the best of PASSES.
// The limit of a batch-1 decode step, which must read every weight once. Plain sums: the compiler vectorises them.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef struct {
    const uint64_t* words;  // [num_words]: this thread's share of the buffer
    size_t num_words;
    int num_passes;
    pthread_barrier_t* barrier;
    uint64_t sum;
} Slice;

static void* read_slice(void* argument) {
    Slice* slice = argument;
    for (int pass = 0; pass < slice->num_passes; ++pass) {
        pthread_barrier_wait(slice->barrier);
        uint64_t sum = 0;
        for (size_t i = 0; i < slice->num_words; ++i) sum += slice->words[i];
        slice->sum += sum;
        pthread_barrier_wait(slice->barrier);
    }
    return NULL;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

int main(int argc, char** argv) {
    if (argc != 4) return fprintf(stderr, "usage: read_bandwidth BYTES THREADS PASSES\n"), 2;
    const size_t num_words = strtoull(argv[1], NULL, 10) / sizeof(uint64_t);
    const int num_threads = atoi(argv[2]), num_passes = atoi(argv[3]);
    uint64_t* words = aligned_alloc(64, (num_words * sizeof(uint64_t) + 63) / 64 * 64);
    Slice* slices = calloc((size_t)num_threads, sizeof(Slice));
    pthread_t* threads = calloc((size_t)num_threads, sizeof(pthread_t));
    if (!words || !slices || !threads || num_threads < 1 || num_passes < 1) return 1;
    for (size_t i = 0; i < num_words; ++i) words[i] = i;  // touched, or all pages would be the one page of zeros

    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, (unsigned)num_threads + 1);
    for (int t = 0; t < num_threads; ++t) {
        const size_t begin = num_words * (size_t)t / (size_t)num_threads;
        const size_t end = num_words * ((size_t)t + 1) / (size_t)num_threads;
        slices[t] = (Slice){words + begin, end - begin, num_passes, &barrier, 0};
        if (pthread_create(&threads[t], NULL, read_slice, &slices[t])) return 1;
    }
    double best = 1e9;
    for (int pass = 0; pass < num_passes; ++pass) {
        pthread_barrier_wait(&barrier);
        const double start = now();
        pthread_barrier_wait(&barrier);
        const double seconds = now() - start;
        best = seconds < best ? seconds : best;
    }
    uint64_t sum = 0;
    for (int t = 0; t < num_threads; ++t) {
        pthread_join(threads[t], NULL);
        sum += slices[t].sum;
    }
    printf("%.6g %llu\n", (double)(num_words * sizeof(uint64_t)) / best, (unsigned long long)sum);
    return 0;
}
