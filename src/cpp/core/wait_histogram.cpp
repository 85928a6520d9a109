// SPDX-License-Identifier: Apache-2.0
#include "core/wait_histogram.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace paged {
namespace {

constexpr double kFirstBound = 0x1p-10;
constexpr double kBucketsPerOctave = 4.0;
constexpr double kKept = 1.0 - 1.0 / 512;  // of the weight of old observations, by each new one

// The part of a bucket that is later than `elapsed`, and its middle.
struct Rest {
  double mass;
  double seconds;
};

Rest rest_of(std::size_t bucket, double mass, double elapsed, double scale) {
  const double lower = WaitHistogram::lower_bound(bucket) * scale;
  const double upper = WaitHistogram::lower_bound(bucket + 1) * scale;
  if (upper <= elapsed) return {0.0, elapsed};
  if (lower >= elapsed) return {mass, std::sqrt(lower * upper)};
  return {mass * std::log(upper / elapsed) / std::log(upper / lower), std::sqrt(elapsed * upper)};
}

}  // namespace

double WaitHistogram::lower_bound(std::size_t bucket) {
  return kFirstBound * std::exp2(static_cast<double>(bucket) / kBucketsPerOctave);
}

std::size_t WaitHistogram::bucket_of(double seconds) {
  const double bucket = std::floor(std::log2(std::max(seconds, kFirstBound) / kFirstBound) * kBucketsPerOctave);
  return static_cast<std::size_t>(std::clamp(bucket, 0.0, static_cast<double>(kNumBuckets - 1)));
}

void WaitHistogram::add(double seconds) {
  for (double& mass : masses_) mass *= kKept;
  never_ *= kKept;
  weight_ = weight_ * kKept + 1.0;
  masses_[bucket_of(seconds)] += 1.0;
}

void WaitHistogram::add_never() {
  add(0.0);
  masses_[0] -= 1.0;
  never_ += 1.0;
}

void WaitHistogram::mix(const WaitHistogram& other, double weight) {
  if (other.weight_ <= 0.0) return;
  for (std::size_t i = 0; i < kNumBuckets; ++i) masses_[i] += other.masses_[i] / other.weight_ * weight;
  never_ += other.never_ / other.weight_ * weight;
  weight_ += weight;
}

void WaitHistogram::mix_power_law(double weight) {
  for (double& mass : masses_) mass += weight / kNumBuckets;
  weight_ += weight;
}

void WaitHistogram::mix_point(double seconds, double weight) {
  const std::size_t bucket = std::clamp<std::size_t>(bucket_of(seconds), 1, kNumBuckets - 2);
  for (std::size_t i = bucket - 1; i <= bucket + 1; ++i) masses_[i] += weight / 3;
  weight_ += weight;
}

void WaitHistogram::mix_span(double from, double to, double weight) {
  from = std::max(from, kFirstBound);
  weight_ += weight;
  if (to <= from * (1 + 1e-9)) {
    masses_[bucket_of(from)] += weight;
    return;
  }
  const double span = std::log(to / from);
  for (std::size_t i = bucket_of(from); i <= bucket_of(to); ++i) {
    const double first = i == bucket_of(from) ? from : lower_bound(i);
    const double last = i == bucket_of(to) ? to : lower_bound(i + 1);
    masses_[i] += weight * std::log(last / first) / span;
  }
}

void WaitHistogram::mix_quantiles(const std::vector<std::pair<double, double>>& quantiles, double weight) {
  if (quantiles.empty()) return;
  double share = 0.0;
  double seconds = quantiles.front().second / 4;
  for (const auto& [next_share, next_seconds] : quantiles) {
    mix_span(seconds, next_seconds, (next_share - share) * weight);
    share = next_share;
    seconds = next_seconds;
  }
  mix_span(seconds, std::max(seconds, kFirstBound) * 16, (1 - share) * weight);
}

double WaitHistogram::share_of(double seconds) const { return masses_[bucket_of(seconds)] / weight_; }

double WaitHistogram::median_left(double elapsed, double scale) const {
  double left = never_;
  for (std::size_t i = 0; i < kNumBuckets; ++i) left += rest_of(i, masses_[i], elapsed, scale).mass;
  double seen = 0.0;
  for (std::size_t i = 0; i < kNumBuckets; ++i) {
    const Rest rest = rest_of(i, masses_[i], elapsed, scale);
    seen += rest.mass;
    if (seen > 0.0 && seen >= left / 2) return rest.seconds - elapsed;
  }
  return std::numeric_limits<double>::infinity();
}

double WaitHistogram::return_rate(double elapsed, double scale) const {
  double left = never_;  // still away
  for (std::size_t i = 0; i < kNumBuckets; ++i) left += rest_of(i, masses_[i], elapsed, scale).mass;
  double best = 0.0;
  double back = 0.0;
  double waited = 0.0;  // by those who are back
  for (std::size_t i = bucket_of(elapsed / scale); i < kNumBuckets; ++i) {
    const Rest rest = rest_of(i, masses_[i], elapsed, scale);
    if (rest.mass <= 0.0) continue;
    back += rest.mass;
    waited += rest.mass * (rest.seconds - elapsed);
    best = std::max(best, back / (waited + std::max(left - back, 0.0) * (rest.seconds - elapsed)));
  }
  return best;
}

}  // namespace paged
