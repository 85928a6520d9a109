// SPDX-License-Identifier: Apache-2.0
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "engine/text_stream.h"

namespace paged {
namespace {

struct Outcome {
  std::string text;
  bool stopped = false;
};

// Pushes the pieces one by one, of which the first num_quiet may not stop, and checks on the way that nothing but whole
// characters comes out.
Outcome run(const std::vector<std::string>& pieces, const std::vector<std::string>& stop, bool include_stop = false,
            std::size_t num_quiet = 0) {
  TextStream stream(stop, include_stop);
  Outcome outcome;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    outcome.stopped = stream.push(pieces[i], i >= num_quiet);
    const std::string chunk = stream.take();
    std::string whole;
    CHECK(append_characters(chunk, false, whole) == chunk.size());
    outcome.text += chunk;
    if (outcome.stopped) break;
  }
  outcome.text += stream.finish();
  return outcome;
}

std::vector<std::string> cut_at_random(const std::string& text, std::mt19937& random) {
  std::vector<std::string> pieces;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = 1 + random() % 4;
    pieces.push_back(text.substr(at, length));
    at += length;
  }
  return pieces;
}

std::vector<std::string> bytes_of(const std::string& text) {
  std::vector<std::string> pieces;
  for (char c : text) pieces.emplace_back(1, c);
  return pieces;
}

TEST(bytes_pass_where_push_and_take_would_give_them) {
  for (const std::string_view bytes : {"", " plain", "\xC3\xA9", "\xC3", "\xFF", "a\xE2\x82"}) {
    for (const std::string_view before : {"", "x", "\xE2\x82"}) {
      TextStream stream({});
      stream.push(before);
      stream.take();
      const bool passes = stream.passes(bytes);
      stream.push(bytes);
      const std::string text = stream.take();
      CHECK(!passes || (text == bytes && stream.finish().empty()), "'", bytes, "' after '", before, "' gives '", text,
            "'");
      CHECK(passes || !(bytes == " plain" && before.size() < 2), "plain bytes do not pass");
    }
  }
  CHECK(!TextStream({"stop"}).passes("s"), "a stop string may begin here");
}

TEST(characters_are_never_cut) {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z";
  CHECK(run(bytes_of(text), {}).text == text);
}

TEST(invalid_bytes_are_replaced_as_in_python) {
  CHECK(run(bytes_of("a\xFF\xE2\x82z"), {}).text == "a\xEF\xBF\xBD\xEF\xBF\xBDz");
  CHECK(run({"\xF0\x9F\x98"}, {}).text == "\xEF\xBF\xBD");
  CHECK(run(bytes_of("\xED\xA0\x80"), {}).text == "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(a_stop_string_cuts_across_pieces_and_inside_one) {
  CHECK(run({"Hello wo", "rld", "!"}, {"world"}).text == "Hello ");
  CHECK(run({"one END two"}, {"END"}).text == "one ");
  CHECK(run({"one E", "ND"}, {"END"}, true).text == "one END");
  CHECK(run({"aab"}, {"ab", "aab"}).text.empty());
  CHECK(!run({"aac"}, {"aab"}).stopped);
  CHECK(run({"aac"}, {"aab"}).text == "aac");
}

TEST(only_what_might_become_a_stop_string_is_held_back) {
  TextStream stream({"abab"});
  CHECK(!stream.push("xaba"));
  CHECK(stream.take() == "x");
  CHECK(!stream.push("x"));
  CHECK(stream.take() == "abax");
  CHECK(!stream.push("aba"));
  CHECK(stream.push("b"));
  CHECK(stream.finish().empty());
}

// However the text is cut into tokens, the result is that of searching the whole text for what ends first, behind those
// that may not stop.
TEST(random_texts_cuts_and_stops_agree_with_a_plain_search) {
  std::mt19937 random(7);
  const auto below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
  const std::vector<std::string> letters = {"a", "b", "\xC3\xA9", "\xE2\x82\xAC"};
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (std::size_t i = below(12); i > 0; --i) text += letters[below(letters.size())];
    std::vector<std::string> stop;
    for (std::size_t i = below(3); i > 0; --i) {
      stop.emplace_back();
      for (std::size_t j = 1 + below(3); j > 0; --j) stop.back() += letters[below(letters.size())];
    }
    for (const auto& pieces : {bytes_of(text), cut_at_random(text, random)}) {
      const std::size_t num_quiet = std::min(below(4), pieces.size());
      std::size_t end = 1, first = std::string::npos;
      for (std::size_t i = 0; i < num_quiet; ++i) end += pieces[i].size();
      for (; end <= text.size() && first == std::string::npos; ++end)
        for (const std::string& s : stop)
          if (text.substr(0, end).ends_with(s)) first = std::min(first, end - s.size());
      const Outcome outcome = run(pieces, stop, false, num_quiet);
      CHECK_EQ(outcome.stopped, first != std::string::npos, "text ", text);
      CHECK_EQ(outcome.text, text.substr(0, first), "text ", text);
    }
  }
}

}  // namespace
}  // namespace paged
