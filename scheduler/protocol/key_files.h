// The directory that `saesweep keys init` makes, read with suspicion: a secret that others can read
// is none.
//
//   DIR 0700        server.key worker.key client.key (0600)  server.pub worker.pub client.pub
//                   worker.access client.access (0600)       authorized/ (0700) NAME.pub
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "scheduler/protocol/keys.h"
#include "scheduler/protocol/security.h"

namespace saesweep::protocol {

// Reads a file that nobody else may read: a regular file, no symbolic link, ours, mode without
// group and others. Errors: kNotFound; kInvalidArgument naming what is wrong; kUnavailable.
Result<SecretBytes> read_secret_file(const std::filesystem::path& path);
// The same of a directory.
Result<void> check_private_directory(const std::filesystem::path& directory);

// Keys of a server, a worker and a client, both of them authorized, and their access bundles. The
// server need not run. Errors: kInvalidArgument if the directory holds anything already, or the
// host is none.
Result<void> init_key_directory(const std::filesystem::path& directory, const Address& address);

struct NewKey {
  std::string name;
  Role role = Role::kWorker;
  std::optional<std::int64_t> expires;
};
// Makes NAME.key, NAME.pub, authorized/NAME.pub and NAME.access; gives back the bundle's path.
// Errors: kInvalidArgument if the name is none or taken.
Result<std::filesystem::path> add_key(const std::filesystem::path& directory, const NewKey& key);
// Removes authorized/NAME.pub, so that a running server refuses the key from now on, then the
// secret files. Errors: kNotFound.
Result<void> revoke_key(const std::filesystem::path& directory, const std::string& name);
// By name. One file that is wrong is an error: a key that was meant to be revoked or limited must
// not be overlooked. Errors: kInvalidArgument naming the file.
Result<std::vector<AuthorizedKey>> read_authorized(const std::filesystem::path& directory);

// What a server and its peers need to start. Errors: as above; a message for people, exit code 2.
Result<ServerSecurity> read_server_security(const std::filesystem::path& directory);
Result<Access> read_access(const std::filesystem::path& file);

}  // namespace saesweep::protocol
