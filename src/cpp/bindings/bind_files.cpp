// SPDX-License-Identifier: Apache-2.0
// Strings in the head of an untrusted file, each behind its length: a vocabulary has hundreds of thousands.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <string_view>

#include "base/check.h"
#include "bindings/module.h"

namespace py = pybind11;

namespace paged {
namespace {

// A position in bytes that somebody else holds; each string is checked before it is believed.
class StringCursor {
 public:
  StringCursor(const py::buffer_info& bytes, std::int64_t position)
      : data_(static_cast<const char*>(bytes.ptr)), size_(bytes.size), position_(position) {
    PAGED_CHECK(bytes.itemsize == 1 && bytes.ndim == 1 && bytes.strides[0] == 1, "expected bytes in one piece");
    PAGED_CHECK(position >= 0 && position <= size_, "position ", position, " of ", size_, " bytes");
  }

  std::int64_t position() const { return position_; }

  // The next one: a little-endian length of 64 bits, then so many bytes.
  std::string_view next() {
    PAGED_CHECK(size_ - position_ >= 8, "a string is cut short: its length at byte ", position_, ", the end at byte ",
                size_);
    std::uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(data_[position_ + i]);
    PAGED_CHECK(length <= static_cast<std::uint64_t>(size_ - position_ - 8), "a string at byte ", position_, " of ",
                length, " bytes goes beyond the end at byte ", size_);
    const std::string_view text(data_ + position_ + 8, static_cast<std::size_t>(length));
    position_ += 8 + static_cast<std::int64_t>(length);
    return text;
  }

  void skip(std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) next();
  }

 private:
  const char* data_;
  std::int64_t size_;
  std::int64_t position_;
};

std::int64_t skip_strings(const py::buffer& data, std::int64_t position, std::int64_t count) {
  const py::buffer_info bytes = data.request();
  StringCursor cursor(bytes, position);
  cursor.skip(count);
  return cursor.position();
}

py::list read_strings(const py::buffer& data, std::int64_t position, std::int64_t first, std::int64_t count) {
  const py::buffer_info bytes = data.request();
  StringCursor cursor(bytes, position);
  cursor.skip(first);
  py::list texts;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::string_view text = cursor.next();
    PyObject* decoded = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr);
    if (decoded == nullptr) throw py::error_already_set();
    texts.append(py::reinterpret_steal<py::str>(decoded));
  }
  return texts;
}

}  // namespace

void bind_files(py::module_& module) {
  module.def("skip_strings", &skip_strings, py::kw_only(), py::arg("data"), py::arg("position"), py::arg("count"),
             "Where the string behind `count` strings begins, the first at `position`: each a little-endian length of\n"
             "64 bits and as many bytes. ValueError if one goes beyond the end.");
  module.def("read_strings", &read_strings, py::kw_only(), py::arg("data"), py::arg("position"), py::arg("first"),
             py::arg("count"),
             "`count` strings, behind `first` that are skipped. ValueError if one goes beyond the end, and as\n"
             "UnicodeDecodeError if it is not UTF-8.");
}

}  // namespace paged
