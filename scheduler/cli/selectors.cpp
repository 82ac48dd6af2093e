#include "scheduler/cli/selectors.h"

#include "scheduler/service/selection.h"

namespace saesweep::cli {

Result<std::vector<std::size_t>> select_trials(
    const std::vector<std::string>& selectors,
    const std::vector<scheduler::SubjectResult>& subjects) {
  std::vector<scheduler::Selectable> trials;
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < subjects.size(); ++i) {
    if (subjects[i].baseline) continue;
    trials.push_back({subjects[i].number, subjects[i].identity});
    places.push_back(i);
  }
  SAE_TRY(std::vector<std::size_t> chosen,
          scheduler::select_trials(std::span<const std::string>(selectors), trials));
  for (std::size_t& index : chosen) index = places[index];
  return chosen;
}

Result<std::size_t> select_trial(std::string_view selector,
                                 const std::vector<scheduler::SubjectResult>& subjects) {
  SAE_TRY(const auto chosen, select_trials({std::string(selector)}, subjects));
  if (chosen.size() != 1)
    return fail(ErrorCode::kInvalidArgument, "'{}' means {} trials; one is wanted here", selector,
                chosen.size());
  return chosen.front();
}

}  // namespace saesweep::cli
