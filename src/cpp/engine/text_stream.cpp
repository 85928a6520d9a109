// SPDX-License-Identifier: Apache-2.0
#include "engine/text_stream.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace paged {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

enum class Utf8 : std::uint8_t { kValid, kInvalid, kIncomplete };

struct Utf8Scan {
  Utf8 state;
  std::size_t length;  // of the character, or of the maximal invalid subpart
};

// The allowed range of the second byte depends on the first (Unicode, table 3-7); later ones are 80..BF.
Utf8Scan scan_character(std::string_view bytes) {
  const auto at = [&](std::size_t i) { return static_cast<std::uint8_t>(bytes[i]); };
  const std::uint8_t first = at(0);
  if (first < 0x80) return {Utf8::kValid, 1};
  if (first < 0xC2 || first > 0xF4) return {Utf8::kInvalid, 1};
  const std::size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  std::uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  std::uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  for (std::size_t i = 1; i < length; ++i, low = 0x80, high = 0xBF) {
    if (i >= bytes.size()) return {Utf8::kIncomplete, i};
    if (at(i) < low || at(i) > high) return {Utf8::kInvalid, i};
  }
  return {Utf8::kValid, length};
}

// The longest proper prefix of `stop` that `bytes` ends in.
std::size_t overlap(std::string_view bytes, std::string_view stop) {
  for (std::size_t length = std::min(bytes.size(), stop.size() - 1); length > 0; --length)
    if (bytes.ends_with(stop.substr(0, length))) return length;
  return 0;
}

}  // namespace

bool TextStream::passes(std::string_view bytes) const {
  const auto is_ascii = [](char byte) { return static_cast<std::uint8_t>(byte) < 0x80; };
  return held_.empty() && stop_.empty() && !stopped_ && std::all_of(bytes.begin(), bytes.end(), is_ascii);
}

std::size_t append_characters(std::string_view bytes, bool last, std::string& text) {
  std::size_t consumed = 0;
  std::size_t copied = 0;
  while (consumed < bytes.size()) {
    const Utf8Scan scan = scan_character(bytes.substr(consumed));
    if (scan.state == Utf8::kIncomplete && !last) break;
    if (scan.state != Utf8::kValid) {
      text += bytes.substr(copied, consumed - copied);
      text += kReplacement;
      copied = consumed + scan.length;
    }
    consumed += scan.length;
  }
  text += bytes.substr(copied, consumed - copied);
  return consumed;
}

TextStream::TextStream(std::vector<std::string> stop, bool include_stop)
    : stop_(std::move(stop)), include_stop_(include_stop) {
  std::erase(stop_, std::string());
}

bool TextStream::push(std::string_view bytes, bool may_stop) {
  if (stopped_) return true;
  held_ += bytes;
  if (!may_stop) {
    ignored_ = held_.size();
    return false;
  }
  std::size_t first_end = std::string::npos;  // the stop string that is complete first wins, the longest of those
  std::size_t first_start = std::string::npos;
  std::size_t longest = 1;
  for (const std::string& stop : stop_) {
    longest = std::max(longest, stop.size());
    const std::size_t start = held_.find(stop, std::max(searched_, ignored_ - std::min(ignored_, stop.size() - 1)));
    if (start == std::string::npos) continue;
    const std::size_t end = start + stop.size();
    if (end < first_end || (end == first_end && start < first_start)) {
      first_end = end;
      first_start = start;
    }
  }
  if (first_end == std::string::npos) {
    if (held_.size() >= longest) searched_ = std::max(searched_, held_.size() - (longest - 1));
    return false;
  }
  held_.resize(include_stop_ ? first_end : first_start);
  return stopped_ = true;
}

std::size_t TextStream::certain_bytes() const {
  if (stopped_) return held_.size();
  std::size_t hold_back = 0;
  for (const std::string& stop : stop_) hold_back = std::max(hold_back, overlap(held_, stop));
  return held_.size() - hold_back;
}

std::string TextStream::take() {
  std::string text;
  const std::size_t consumed = append_characters(std::string_view(held_).substr(0, certain_bytes()), false, text);
  held_.erase(0, consumed);
  searched_ -= std::min(searched_, consumed);
  ignored_ -= std::min(ignored_, consumed);
  return text;
}

std::string TextStream::finish() {
  std::string text;
  append_characters(held_, true, text);
  held_.clear();
  searched_ = ignored_ = 0;
  stopped_ = true;
  return text;
}

}  // namespace paged
