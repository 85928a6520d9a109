// SPDX-License-Identifier: Apache-2.0
// Prints the floating-point operations per second that THREADS threads reach together on float32 multiply-adds that
// never leave the registers, the best of PASSES. Built with -march=native: the widest vectors of this machine. Each
// thread takes its own times, so that a late wake-up of the main thread cannot shorten a pass.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifdef __AVX512F__
enum { kLanes = 16, kChains = 12, kSteps = 1 << 20 };
#else  // chains that do not all fit in the registers would measure memory
enum { kLanes = 8, kChains = 12, kSteps = 1 << 20 };
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes)));

typedef struct {
    pthread_barrier_t* barrier;
    double begin, end;
    float sum;
} Worker;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void* multiply_add(void* argument) {
    Worker* worker = argument;
    volatile float seed = 0.999f;  // unknown to the compiler
    const Vector factor = seed - (Vector){0};
    Vector chain[kChains];
    for (int c = 0; c < kChains; ++c) chain[c] = factor * (float)c;
    pthread_barrier_wait(worker->barrier);
    worker->begin = now();
    for (int step = 0; step < kSteps; ++step)
        for (int c = 0; c < kChains; ++c) chain[c] = chain[c] * factor + factor;
    worker->end = now();
    for (int c = 0; c < kChains; ++c) worker->sum += chain[c][0];
    return NULL;
}

// Seconds from the first thread's start to the last one's end.
static double pass(Worker* workers, pthread_t* threads, int num_threads) {
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, (unsigned)num_threads);
    for (int t = 0; t < num_threads; ++t) {
        workers[t].barrier = &barrier;
        if (pthread_create(&threads[t], NULL, multiply_add, &workers[t])) exit(1);
    }
    double begin = 1e300, end = 0;
    for (int t = 0; t < num_threads; ++t) {
        pthread_join(threads[t], NULL);
        begin = workers[t].begin < begin ? workers[t].begin : begin;
        end = workers[t].end > end ? workers[t].end : end;
    }
    pthread_barrier_destroy(&barrier);
    return end - begin;
}

int main(int argc, char** argv) {
    if (argc != 3) return fprintf(stderr, "usage: fma_peak THREADS PASSES\n"), 2;
    const int num_threads = atoi(argv[1]), num_passes = atoi(argv[2]);
    if (num_threads < 1 || num_passes < 1) return 1;
    Worker* workers = calloc((size_t)num_threads, sizeof(Worker));
    pthread_t* threads = calloc((size_t)num_threads, sizeof(pthread_t));
    if (!workers || !threads) return 1;
    double best = 1e300;
    for (int i = 0; i < num_passes; ++i) {
        const double seconds = pass(workers, threads, num_threads);
        best = seconds < best ? seconds : best;
    }
    volatile float sum = 0;  // the products are wanted
    for (int t = 0; t < num_threads; ++t) sum += workers[t].sum;
    printf("%.0f\n", 2.0 * kLanes * kChains * (double)kSteps * num_threads / best);
    return 0;
}
