// Small words that the simulated processes share.
#pragma once

#include <cstdint>
#include <string>

namespace saesweep::sim {

// Of a session id, as the link does it.
inline std::uint64_t low_half(const std::string& id) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < 8 && i < id.size(); ++i)
    value |= std::uint64_t{static_cast<unsigned char>(id[i])} << (8 * i);
  return value;
}

}  // namespace saesweep::sim
