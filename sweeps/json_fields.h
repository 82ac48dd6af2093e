// Reading an object of JSON field by field, strictly: a missing field, a wrong type, a number that
// does not fit and a field nobody asked for are errors. The first one is kept and finish() says it.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/json.h"
#include "core/result.h"

namespace saesweep::sweeps {

class JsonFields {
 public:
  // `json` outlives this; `what` names it in messages.
  JsonFields(std::string what, const Json& json) : what_(std::move(what)), json_(json) {
    if (!json_.is_object()) problem("is no object");
  }

  template <class T>
  void read(const char* name, T& out) {
    const Json* field = optional(name);
    if (field == nullptr)
      problem(fmt::format("has no field '{}'", name));
    else if (!take(*field, out))
      refuse(name, field->dump(-1, ' ', true, Json::error_handler_t::replace));
  }
  template <class T>
  void read_optional(const char* name, std::optional<T>& out) {
    if (optional(name) == nullptr) return;
    out.emplace();
    read(name, *out);
  }
  // nullptr if absent.
  const Json* optional(const char* name) {
    seen_.insert(name);
    if (!json_.is_object()) return nullptr;
    const auto found = json_.find(name);
    return found == json_.end() ? nullptr : &*found;
  }
  // A field that must be there.
  const Json* object(const char* name) {
    const Json* field = optional(name);
    if (field == nullptr) problem(fmt::format("has no field '{}'", name));
    return field;
  }
  void refuse(const char* name, const std::string& value) {
    problem(fmt::format("has a wrong '{}': {}", name, value.substr(0, 80)));
  }

  Result<void> finish() {
    if (json_.is_object())
      for (const auto& [name, value] : json_.items())
        if (!seen_.contains(name)) problem(fmt::format("has an unknown field '{}'", name));
    if (!problem_.empty()) return fail(ErrorCode::kInvalidArgument, "{} {}", what_, problem_);
    return {};
  }

 private:
  void problem(std::string text) {
    if (problem_.empty()) problem_ = std::move(text);
  }

  static bool take(const Json& field, std::string& out) {
    if (!field.is_string()) return false;
    out = field.get_ref<const std::string&>();
    return true;
  }
  static bool take(const Json& field, bool& out) {
    if (!field.is_boolean()) return false;
    out = field.get<bool>();
    return true;
  }
  static bool take(const Json& field, double& out) {
    if (!field.is_number()) return false;
    out = field.get<double>();
    return std::isfinite(out);
  }
  static bool take(const Json& field, std::uint64_t& out) {
    // A number that never was text is signed if it came from a signed one.
    if (!field.is_number_integer() ||
        (!field.is_number_unsigned() && field.get<std::int64_t>() < 0))
      return false;
    out = field.get<std::uint64_t>();
    return true;
  }
  static bool take(const Json& field, int& out) {
    std::uint64_t value = 0;
    if (!take(field, value) || value > std::uint64_t{std::numeric_limits<int>::max()}) return false;
    out = static_cast<int>(value);
    return true;
  }
  static bool take(const Json& field, std::array<double, 2>& out) {
    return field.is_array() && field.size() == 2 && take(field[0], out[0]) &&
           take(field[1], out[1]);
  }

  template <class T>
  static bool take(const Json& field, std::vector<T>& out) {
    if (!field.is_array()) return false;
    out.assign(field.size(), T{});
    for (std::size_t i = 0; i < out.size(); ++i)
      if (!take(field[i], out[i])) return false;
    return true;
  }

  std::string what_;
  const Json& json_;
  std::set<std::string> seen_;
  std::string problem_;
};

}  // namespace saesweep::sweeps
