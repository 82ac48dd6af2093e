#include "core/json.h"

#include <set>
#include <vector>

namespace saesweep {
namespace {

// Hears what nlohmann's parser reads, builds nothing. That parser keeps its own stack on the heap;
// what recurses is the destruction of values, so depth is checked before anything is built.
class Checker : public nlohmann::json_sax<Json> {
 public:
  explicit Checker(std::size_t max_depth) : max_depth_(max_depth) {}

  const std::string& problem() const { return problem_; }

  bool start_object(std::size_t) override {
    keys_.emplace_back();
    return enter();
  }
  bool start_array(std::size_t) override { return enter(); }
  bool end_object() override {
    keys_.pop_back();
    --depth_;
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    problem_ = fmt::format("JSON repeats the key \"{}\"", name);
    return false;
  }
  bool parse_error(std::size_t, const std::string&, const Json::exception& error) override {
    problem_ = fmt::format("not JSON: {}", error.what());
    return false;
  }
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }

 private:
  bool enter() {
    if (++depth_ <= max_depth_) return true;
    problem_ = fmt::format("JSON nested deeper than {}", max_depth_);
    return false;
  }

  std::size_t max_depth_;
  std::size_t depth_ = 0;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
  std::string problem_;
};

}  // namespace

Result<Json> parse_json(std::string_view text, std::size_t max_depth, std::size_t max_bytes) {
  if (text.size() > max_bytes)
    return fail(ErrorCode::kCorrupted, "JSON of {} bytes, more than {}", text.size(), max_bytes);
  Checker checker(max_depth);
  if (!Json::sax_parse(text, &checker)) return fail(ErrorCode::kCorrupted, "{}", checker.problem());
  return Json::parse(text, nullptr, false);
}

std::string canonical_json(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string pretty_json(const Json& value) {
  return value.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace saesweep
