#include "scheduler/protocol/key_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/files.h"
#include "tests/support/temp_dir.h"

namespace saesweep::protocol {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

struct KeyDirectory : testing::Test {
  test::TempDir dir;
  fs::path keys = dir.path() / "keys";
  void SetUp() override { ASSERT_TRUE(init_key_directory(keys, {"10.0.0.1", 1000, 2000})); }
  std::string why_no_start() const {
    const auto security = read_server_security(keys);
    EXPECT_TRUE(security || security.error().code == ErrorCode::kInvalidArgument);
    return security ? "it starts" : security.error().message;
  }
  static unsigned mode(const fs::path& path) {
    struct stat info {};
    return ::lstat(path.c_str(), &info) == 0 ? info.st_mode & 07777 : 0;
  }
  std::vector<std::string> authorized() const {
    std::vector<std::string> names;
    const std::vector<AuthorizedKey> all = read_authorized(keys).value();
    for (const AuthorizedKey& key : all)
      names.push_back(fmt::format("{}:{}", to_string(key.role), key.name));
    return names;
  }
};

TEST_F(KeyDirectory, HoldsKeysBundlesAndTheirAuthorizations) {
  std::vector<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(keys)) {
    files.push_back(fs::relative(entry.path(), keys).string());
    EXPECT_EQ(mode(entry.path()), entry.is_directory() ? 0700u : 0600u) << entry.path();
  }
  EXPECT_EQ(mode(keys), 0700u);
  EXPECT_THAT(files,
              UnorderedElementsAre("server.key", "server.pub", "worker.key", "worker.pub",
                                   "worker.access", "client.key", "client.pub", "client.access",
                                   "authorized", "authorized/worker.pub", "authorized/client.pub"));
  EXPECT_THAT(authorized(), UnorderedElementsAre("client:client", "worker:worker"));
}

TEST_F(KeyDirectory, BundlesFitTheServerAndItsAuthorizations) {
  const ServerSecurity server = read_server_security(keys).value();
  const Access worker = read_access(keys / "worker.access").value();
  const Access client = read_access(keys / "client.access").value();
  EXPECT_EQ(worker.endpoint(), "tcp://10.0.0.1:1000");
  EXPECT_EQ(client.endpoint(), "tcp://10.0.0.1:2000");
  EXPECT_EQ(worker.server, server.keys->public_key);
  EXPECT_EQ(client.server, server.keys->public_key);
  const std::vector<AuthorizedKey> all = read_authorized(keys).value();
  for (const AuthorizedKey& key : all)
    EXPECT_EQ(key.public_key,
              key.role == Role::kWorker ? worker.keys.public_key : client.keys.public_key);
  // A client's bundle says nothing of the worker's key.
  const std::string text = read_file(keys / "client.access").value();
  EXPECT_EQ(text.find(z85(worker.keys.public_key)), std::string::npos);
}

TEST_F(KeyDirectory, IsNeverOverwritten) {
  const std::string before = read_file(keys / "server.key").value();
  const auto again = init_key_directory(keys, {});
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(again.error().message, HasSubstr("not empty"));
  EXPECT_EQ(read_file(keys / "server.key").value(), before);
}

TEST_F(KeyDirectory, NeedsAnAddressThatCanBeReadAgain) {
  for (const Address& wrong : {Address{"", 1, 1}, Address{"a b", 1, 1}, Address{"x\nsecret=", 1, 1},
                               Address{"h", 0, 1}, Address{"h", 1, 0}}) {
    const auto made = init_key_directory(dir.path() / "other", wrong);
    ASSERT_FALSE(made);
    EXPECT_EQ(made.error().code, ErrorCode::kInvalidArgument);
  }
  EXPECT_FALSE(fs::exists(dir.path() / "other"));
}

TEST_F(KeyDirectory, AddsKeysOfAnyRole) {
  const fs::path bundle = add_key(keys, {"boss", Role::kAdmin, 2'000'000'000}).value();
  EXPECT_EQ(bundle, keys / "boss.access");
  EXPECT_THAT(authorized(), UnorderedElementsAre("client:client", "worker:worker", "admin:boss"));
  EXPECT_EQ(read_authorized(keys).value()[0].expires, 2'000'000'000) << "sorted by name";
  const Access access = read_access(bundle).value();
  EXPECT_EQ(access.role, Role::kAdmin);
  EXPECT_EQ(access.endpoint(), "tcp://10.0.0.1:2000");
}

TEST_F(KeyDirectory, RefusesNamesThatAreTakenOrNone) {
  for (const char* name : {"worker", "server", "", "..", "a/b"}) {
    const auto added = add_key(keys, {name, Role::kWorker, {}});
    ASSERT_FALSE(added) << name;
    EXPECT_EQ(added.error().code, ErrorCode::kInvalidArgument);
  }
  EXPECT_EQ(authorized().size(), 2u);
}

TEST_F(KeyDirectory, RevokesAKeyAndItsSecrets) {
  ASSERT_TRUE(revoke_key(keys, "worker"));
  EXPECT_THAT(authorized(), UnorderedElementsAre("client:client"));
  for (const char* ending : {"key", "pub", "access"})
    EXPECT_FALSE(fs::exists(keys / fmt::format("worker.{}", ending))) << ending;
  EXPECT_EQ(revoke_key(keys, "worker").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(revoke_key(keys, "server").error().code, ErrorCode::kInvalidArgument);
  ASSERT_TRUE(add_key(keys, {"worker", Role::kWorker, {}})) << "the name is free again";
}

TEST_F(KeyDirectory, StartIsRefusedWhenOthersCanRead) {
  EXPECT_EQ(why_no_start(), "it starts");
  for (const mode_t wrong : {0750, 0705, 0770, 0701}) {
    ASSERT_EQ(::chmod(keys.c_str(), wrong), 0);
    EXPECT_THAT(why_no_start(), HasSubstr("chmod 700"));
  }
  ASSERT_EQ(::chmod(keys.c_str(), 0700), 0);
  for (const mode_t wrong : {0640, 0604, 0660}) {
    ASSERT_EQ(::chmod((keys / "server.key").c_str(), wrong), 0);
    EXPECT_THAT(why_no_start(), HasSubstr("chmod 600"));
    ASSERT_EQ(::chmod((keys / "worker.access").c_str(), wrong), 0);
    EXPECT_FALSE(read_access(keys / "worker.access"));
  }
  ASSERT_EQ(::chmod((keys / "server.key").c_str(), 0600), 0);
  ASSERT_EQ(::chmod((keys / "authorized").c_str(), 0755), 0);
  EXPECT_THAT(why_no_start(), HasSubstr("authorized"));
}

TEST_F(KeyDirectory, StartIsRefusedThroughALink) {
  fs::rename(keys / "server.key", dir.path() / "elsewhere");
  fs::create_symlink(dir.path() / "elsewhere", keys / "server.key");
  EXPECT_THAT(why_no_start(), HasSubstr("symbolic link"));
  fs::remove(keys / "server.key");
  fs::rename(dir.path() / "elsewhere", keys / "server.key");
  EXPECT_EQ(why_no_start(), "it starts");
  fs::rename(keys, dir.path() / "real");
  fs::create_directory_symlink(dir.path() / "real", keys);
  EXPECT_THAT(why_no_start(), HasSubstr("symbolic link"));
}

TEST_F(KeyDirectory, StartIsRefusedWhenItBelongsToSomebodyElse) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root gives files away";
  ASSERT_EQ(::chown((keys / "server.key").c_str(), 12345, 12345), 0);
  EXPECT_THAT(why_no_start(), HasSubstr("belongs to user 12345"));
  ASSERT_EQ(::chown((keys / "server.key").c_str(), 0, 0), 0);
  ASSERT_EQ(::chown(keys.c_str(), 12345, 12345), 0);
  EXPECT_THAT(why_no_start(), HasSubstr("belongs to user 12345"));
}

TEST_F(KeyDirectory, StartIsRefusedWhenAnAuthorizationCannotBeRead) {
  ASSERT_TRUE(write_file_atomically(keys / "authorized" / "odd.pub", std::string_view("role=")));
  EXPECT_THAT(why_no_start(), HasSubstr("odd.pub"));
}

TEST_F(KeyDirectory, StartIsRefusedWithoutKeys) {
  const auto none = read_server_security(dir.path() / "none");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kNotFound);
}

TEST_F(KeyDirectory, ReadsNoPipe) {
  fs::remove(keys / "server.key");
  ASSERT_EQ(::mkfifo((keys / "server.key").c_str(), 0600), 0);
  EXPECT_THAT(why_no_start(), HasSubstr("is not a file"));
}

}  // namespace
}  // namespace saesweep::protocol
