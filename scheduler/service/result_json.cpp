#include "scheduler/service/result_json.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;
using Files = std::map<std::string, fs::path>;

Json files_json(const Files& files) {
  Json json = Json::object();
  for (const auto& [name, path] : files) json[name] = path.string();
  return json;
}

// Reads fields and remembers the first that is not what it should be.
class Reader {
 public:
  template <class T>
  void read(const Json& object, const char* name, T& value) {
    const auto found = object.is_object() ? object.find(name) : object.end();
    if (!object.is_object() || found == object.end() || !take(*found, value)) complain(name);
  }
  void complain(const char* name) {
    if (problem_.empty()) problem_ = name;
  }
  const std::string& problem() const { return problem_; }

 private:
  static bool take(const Json& json, std::string& value) {
    if (json.is_string()) value = json.get<std::string>();
    return json.is_string();
  }
  static bool take(const Json& json, bool& value) {
    if (json.is_boolean()) value = json.get<bool>();
    return json.is_boolean();
  }
  static bool take(const Json& json, double& value) {
    if (json.is_number()) value = json.get<double>();
    return json.is_number();
  }
  template <class T>
  static bool take(const Json& json, T& value) requires std::is_unsigned_v<T> {
    if (json.is_number_unsigned()) value = json.get<T>();
    return json.is_number_unsigned();
  }
  static bool take(const Json& json, Json& value) {
    if (json.is_object()) value = json;
    return json.is_object();
  }
  static bool take(const Json& json, std::optional<double>& value) {
    if (json.is_number()) value = json.get<double>();
    return json.is_number() || json.is_null();
  }
  static bool take(const Json& json, Files& value) {
    if (!json.is_object()) return false;
    for (const auto& [name, path] : json.items()) {
      if (!path.is_string()) return false;
      value[name] = path.get<std::string>();
    }
    return true;
  }
  std::string problem_;
};

}  // namespace

Json to_json(const SweepResult& sweep) {
  Json json{{"schema", 1},
            {"name", sweep.name},
            {"finished", sweep.finished},
            {"started", sweep.started},
            {"ended", sweep.ended ? Json(*sweep.ended) : Json(nullptr)},
            {"effective_yaml", sweep.effective_yaml},
            {"model_files", files_json(sweep.model_files)},
            {"model_summary", sweep.model_summary},
            {"subjects", Json::array()}};
  for (const SubjectResult& subject : sweep.subjects)
    json["subjects"].push_back({{"baseline", subject.baseline},
                                {"number", subject.number},
                                {"identity", subject.identity},
                                {"spec", subject.spec},
                                {"state", subject.state},
                                {"reason", subject.reason},
                                {"tokens", subject.tokens},
                                {"train_summary", subject.train_summary},
                                {"files", files_json(subject.files)},
                                {"evaluations", subject.evaluations}});
  return json;
}

Result<SweepResult> result_from_json(const Json& json) {
  Reader reader;
  SweepResult sweep;
  reader.read(json, "name", sweep.name);
  reader.read(json, "finished", sweep.finished);
  reader.read(json, "started", sweep.started);
  reader.read(json, "ended", sweep.ended);
  reader.read(json, "effective_yaml", sweep.effective_yaml);
  reader.read(json, "model_files", sweep.model_files);
  reader.read(json, "model_summary", sweep.model_summary);
  const auto subjects = json.is_object() ? json.find("subjects") : json.end();
  if (!json.is_object() || subjects == json.end() || !subjects->is_array())
    return fail(ErrorCode::kCorrupted, "the scheduler's answer has no subjects");
  for (const Json& each : *subjects) {
    SubjectResult subject;
    reader.read(each, "baseline", subject.baseline);
    reader.read(each, "number", subject.number);
    reader.read(each, "identity", subject.identity);
    reader.read(each, "spec", subject.spec);
    reader.read(each, "state", subject.state);
    reader.read(each, "reason", subject.reason);
    reader.read(each, "tokens", subject.tokens);
    reader.read(each, "train_summary", subject.train_summary);
    reader.read(each, "files", subject.files);
    const auto evaluations = each.is_object() ? each.find("evaluations") : each.end();
    if (!each.is_object() || evaluations == each.end() || !evaluations->is_array())
      reader.complain("evaluations");
    else
      for (const Json& evaluation : *evaluations) subject.evaluations.push_back(evaluation);
    sweep.subjects.push_back(std::move(subject));
  }
  if (!reader.problem().empty())
    return fail(ErrorCode::kCorrupted, "the scheduler's answer has no fitting '{}'",
                reader.problem());
  return sweep;
}

}  // namespace saesweep::scheduler
