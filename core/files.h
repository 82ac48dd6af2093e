// Files that are whole or absent: write to a temporary name, sync, rename, sync the directory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace saesweep {

// Maps errno to what the caller does next: ENOENT kNotFound, ENOSPC/EDQUOT kResourceExhausted,
// EACCES/EROFS/... kUnavailable. `what` names the act and the path.
Error system_error(int error_number, std::string_view what);

// Errors: kNotFound; kUnavailable; kInvalidArgument if longer than `max_bytes`.
Result<std::string> read_file(const std::filesystem::path& path,
                              std::uint64_t max_bytes = std::uint64_t{1} << 40);

// Replaces `path` atomically and durably; a crash leaves the old file or the new one.
// Errors: kResourceExhausted on a full disk; kUnavailable.
Result<void> write_file_atomically(const std::filesystem::path& path, std::string_view bytes);
Result<void> write_file_atomically(const std::filesystem::path& path,
                                   std::span<const std::byte> bytes);

Result<void> sync_directory(const std::filesystem::path& directory);
Result<void> make_directories(const std::filesystem::path& directory);

// A fresh directory in `parent` of mode 0700, e.g. for sockets.
Result<std::filesystem::path> make_private_directory(const std::filesystem::path& parent,
                                                     std::string_view prefix);

}  // namespace saesweep
