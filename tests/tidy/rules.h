// The rules of the house that a compiler cannot hold: which room may include which, which library
// stays behind which wall, and how a file begins.
//
// A room is a folder; the longest prefix of a file's path names it. Third-party headers are visible
// to every target on a distribution, so CMake alone would let any file include any library.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace saesweep::tidy {

struct Violation {
  std::string path;  // from the repository root
  int line = 0;      // from 1; 0: the file as a whole
  std::string message;
};

struct Include {
  std::string target;  // as written, without quotes or brackets
  bool quoted = false;
  int line = 0;
};

// The #include lines of a source. A line is one if its first character that is not a space is '#',
// so text in a string literal of a line of its own is not mistaken for one.
std::vector<Include> includes_of(std::string_view text);

// "storage/formats" for "storage/formats/safetensors.h"; empty outside of every room.
std::string_view room_of(std::string_view path);

// All rules that need one file only.
std::vector<Violation> check_file(std::string_view path, std::string_view text);

// Headers that include each other in a circle: one violation for each circle met.
//   files: path -> text
std::vector<Violation> check_circles(const std::map<std::string, std::string>& files);

}  // namespace saesweep::tidy
