// SPDX-License-Identifier: Apache-2.0
// The desk where Python's guides answer (engine/guide_desk.h). Nothing here waits: Python's threads wait by reading the
// pipe, so the GIL is not given away, and no thread sits in C++ when the interpreter ends.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>

#include "bindings/module.h"
#include "engine/guide_desk.h"

namespace py = pybind11;

namespace paged {
namespace {

using MaskArray = py::array_t<std::uint32_t, py::array::c_style | py::array::forcecast>;
using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

void answer_mask(GuideDesk& desk, const GuideQuestion& question, const MaskArray& mask) {
  PAGED_CHECK(mask.ndim() == 1, "a mask has one dimension, got ", mask.ndim());
  desk.answer({question.id, GuideAnswer::Kind::kMask, {mask.data(), mask.data() + mask.size()}});
}

TokenId sample(GuideDesk& desk, GuideQuestion& question, const FloatArray& logits) {
  PAGED_CHECK(question.sample != nullptr, "this question is not answered with logits");
  PAGED_CHECK(logits.ndim() == 1, "logits have one dimension, got ", logits.ndim());
  std::vector<float> processed(logits.data(), logits.data() + logits.size());
  return desk.sample(*question.sample, processed);
}

py::object logits_of(const GuideQuestion& question) {
  if (question.sample == nullptr) return py::none();
  const std::vector<float>& logits = question.sample->logits;
  return py::array_t<float>(static_cast<py::ssize_t>(logits.size()), logits.data());
}

}  // namespace

void bind_guide(py::module_& module) {
  py::class_<GuideQuestion>(module, "GuideQuestion", "About the next token of one request.")
      .def_readonly("key", &GuideQuestion::key)
      .def_readonly("tokens", &GuideQuestion::tokens)
      .def_readonly("ended", &GuideQuestion::ended)
      .def_property_readonly("logits", &logits_of);
  py::class_<GuideDesk, std::shared_ptr<GuideDesk>>(module, "GuideDesk", "Where guides find questions and answer.")
      .def_property_readonly("vocab_size", &GuideDesk::vocab_size)
      .def_property_readonly("read_end", &GuideDesk::read_end)
      .def("next", &GuideDesk::next, "After reading a byte from read_end; None if another thread has taken it.")
      .def("answer_mask", &answer_mask, py::arg("question"), py::arg("mask"))
      .def(
          "answer_anything", [](GuideDesk& desk, const GuideQuestion& question) { desk.answer({question.id}); },
          py::arg("question"))
      .def("sample", &sample, py::arg("question"), py::arg("logits"),
           "The token that the request's own sampling and edits make of the logits, float32 [vocab_size].")
      .def(
          "answer_token",
          [](GuideDesk& desk, const GuideQuestion& question, TokenId token) {
            std::vector<ScoredToken> scores;
            if (question.sample != nullptr) scores = question.sample->scores;
            desk.answer({question.id, GuideAnswer::Kind::kToken, {}, token, std::move(scores)});
          },
          py::arg("question"), py::arg("token"))
      .def(
          "answer_stop",
          [](GuideDesk& desk, const GuideQuestion& question) { desk.answer({question.id, GuideAnswer::Kind::kStop}); },
          py::arg("question"))
      .def(
          "answer_error",
          [](GuideDesk& desk, const GuideQuestion& question, std::string text) {
            desk.answer({question.id, GuideAnswer::Kind::kError, {}, 0, {}, std::move(text)});
          },
          py::arg("question"), py::arg("text"));
}

}  // namespace paged
