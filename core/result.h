// Result<T>: a value or the Error that took its place. Nothing of ours throws.
#pragma once

#include <fmt/core.h>

#include <string>
#include <utility>

namespace tl {
template <class T, class E>
class [[nodiscard]] expected;  // an ignored Result is a warning
}
#include <tl/expected.hpp>

#include "core/error.h"

namespace saesweep {

template <class T>
using Result = tl::expected<T, Error>;

// fail(ErrorCode::kNotFound, "no chunk {} in {}", index, stream) converts to any Result<T>.
template <class... Args>
tl::unexpected<Error> fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  return tl::unexpected<Error>(Error{code, fmt::format(format, std::forward<Args>(args)...)});
}

inline tl::unexpected<Error> fail(Error error) { return tl::unexpected<Error>(std::move(error)); }

// SAE_TRY(auto value, open(path)): the value, or return the error from the enclosing function.
#define SAE_CONCAT_INNER(a, b) a##b
#define SAE_CONCAT(a, b) SAE_CONCAT_INNER(a, b)
#define SAE_TRY_IMPL(result, declaration, expression)              \
  auto result = (expression);                                      \
  if (!result) return ::saesweep::fail(std::move(result.error())); \
  declaration = std::move(*result)
#define SAE_TRY(declaration, expression) \
  SAE_TRY_IMPL(SAE_CONCAT(sae_try_, __LINE__), declaration, expression)
// The same for Result<void>.
#define SAE_TRY_VOID(expression)                              \
  do {                                                        \
    if (auto sae_result = (expression); !sae_result)          \
      return ::saesweep::fail(std::move(sae_result.error())); \
  } while (false)

}  // namespace saesweep
