// SPDX-License-Identifier: Apache-2.0
// A distribution of waiting times, learnt online: a histogram over the logarithm of time, whose old observations fade.
// What it is for: the rate at which somebody who has been away for some time comes back.
#pragma once

#include <array>
#include <cstddef>
#include <utility>
#include <vector>

namespace paged {

class WaitHistogram {
 public:
  static constexpr std::size_t kNumBuckets = 128;  // four to an octave
  using Masses = std::array<double, kNumBuckets>;

  // Waits from about a millisecond to fifty days.
  static double lower_bound(std::size_t bucket);
  static std::size_t bucket_of(double seconds);

  void add(double seconds);
  void add_never();  // it was seen to end without coming back
  double weight() const { return weight_; }

  // Adds another distribution, normalised, with a weight.
  void mix(const WaitHistogram& other, double weight);
  // Adds weight that is spread evenly over the logarithm of time: somebody away for t then comes back at a rate of
  // about 1/t, which makes holding until the rent paid equals the price the rule (ski rental).
  void mix_power_law(double weight);
  void mix_point(double seconds, double weight);  // and its two neighbours
  // Adds the distribution with these quantiles, (share, seconds) ascending: between two of them, over two octaves
  // before the first and over four behind the last it is spread evenly over the logarithm of time.
  void mix_quantiles(const std::vector<std::pair<double, double>>& quantiles, double weight);

  double share_of(double seconds) const;  // of its bucket
  double median_left(double elapsed, double scale) const;

  // The best rate that holding on can have: the largest quotient, over all moments to give up, of the probability to be
  // back by then and the time until it is back or given up (Gittins' index of the wait). Times are the histogram's
  // times `scale`; it has been away for `elapsed` seconds.
  double return_rate(double elapsed, double scale = 1.0) const;

 private:
  void mix_span(double from, double to, double weight);

  Masses masses_ = {};
  double never_ = 0.0;
  double weight_ = 0.0;
};

}  // namespace paged
