// The files that a task's spec names: absolute paths of the machine where the sweep was planned.
// Between machines each is an object of the data port, named by its path.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/json.h"

namespace saesweep::protocol {

// Values of the keys "path" and "init_path" at any depth that are absolute paths; each once.
std::vector<std::string> paths_of(const Json& spec);
// The same spec with other paths. `other` gives the new one, or the old one.
Json with_paths(Json spec, const std::function<std::string(const std::string&)>& other);

// files/<64 hex digits>
std::string object_of_path(const std::string& path);

}  // namespace saesweep::protocol
