// SPDX-License-Identifier: Apache-2.0
// Prints the rate in bytes per second at which THREADS threads together read a buffer of BYTES, the best of PASSES.
// The limit of a batch-1 decode step, which must read every weight once. Plain sums: the compiler vectorises them.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static const size_t kHugePage = (size_t)2 << 20;

typedef struct {
  const uint64_t* words;  // [num_words]: this thread's share of the buffer
  size_t num_words;
  int num_passes;
  double* starts;  // [num_passes]: when this thread began and ended each pass
  double* ends;    // [num_passes]
  pthread_barrier_t* barrier;
  uint64_t sum;
} Slice;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

// The threads read the clock themselves: one that only watched could be off its core while they work.
static void* read_slice(void* argument) {
  Slice* slice = argument;
  for (int pass = 0; pass < slice->num_passes; ++pass) {
    pthread_barrier_wait(slice->barrier);
    slice->starts[pass] = now();
    uint64_t sum = 0;
    for (size_t i = 0; i < slice->num_words; ++i) sum += slice->words[i];
    slice->sum += sum;
    slice->ends[pass] = now();
  }
  return NULL;
}

// Seconds of the shortest pass, from the first thread's start to the last one's end.
static double best_seconds(const Slice* slices, int num_threads, int num_passes) {
  double best = 1e9;
  for (int pass = 0; pass < num_passes; ++pass) {
    double start = slices[0].starts[pass], end = slices[0].ends[pass];
    for (int t = 1; t < num_threads; ++t) {
      start = slices[t].starts[pass] < start ? slices[t].starts[pass] : start;
      end = slices[t].ends[pass] > end ? slices[t].ends[pass] : end;
    }
    best = end - start < best ? end - start : best;
  }
  return best;
}

int main(int argc, char** argv) {
  if (argc != 4) return fprintf(stderr, "usage: read_bandwidth BYTES THREADS PASSES\n"), 2;
  const size_t num_words = strtoull(argv[1], NULL, 10) / sizeof(uint64_t);
  const int num_threads = atoi(argv[2]), num_passes = atoi(argv[3]);
  if (num_threads < 1 || num_passes < 1) return 2;
  const size_t num_bytes = (num_words * sizeof(uint64_t) + kHugePage - 1) / kHugePage * kHugePage;
  uint64_t* words = aligned_alloc(kHugePage, num_bytes);
  Slice* slices = calloc((size_t)num_threads, sizeof(Slice));
  pthread_t* threads = calloc((size_t)num_threads, sizeof(pthread_t));
  double* times = calloc((size_t)num_threads * (size_t)num_passes * 2, sizeof(double));
  if (!words || !slices || !threads || !times) return 1;
  madvise(words, num_bytes, MADV_HUGEPAGE);  // advice: where it is not taken, the rate is that of small pages
  for (size_t i = 0; i < num_words; ++i) words[i] = i;  // touched, or all pages would be the one page of zeros

  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, NULL, (unsigned)num_threads);
  for (int t = 0; t < num_threads; ++t) {
    const size_t begin = num_words * (size_t)t / (size_t)num_threads;
    const size_t end = num_words * ((size_t)t + 1) / (size_t)num_threads;
    double* starts = times + (size_t)t * (size_t)num_passes * 2;
    slices[t] = (Slice){words + begin, end - begin, num_passes, starts, starts + num_passes, &barrier, 0};
    if (pthread_create(&threads[t], NULL, read_slice, &slices[t])) return 1;
  }
  uint64_t sum = 0;
  for (int t = 0; t < num_threads; ++t) {
    pthread_join(threads[t], NULL);
    sum += slices[t].sum;
  }
  const double rate = (double)(num_words * sizeof(uint64_t)) / best_seconds(slices, num_threads, num_passes);
  printf("%.6g %llu\n", rate, (unsigned long long)sum);
  return 0;
}
