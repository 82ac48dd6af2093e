// `saesweep keys` as a user types it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/files.h"
#include "core/json.h"
#include "tests/e2e/program.h"
#include "tests/support/temp_dir.h"

namespace saesweep::test {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

struct KeysProgram : testing::Test {
  TempDir dir;
  std::string keys = (dir.path() / "keys").string();

  Finished saesweep(std::vector<std::string> words) {
    words.insert(words.begin(), SAESWEEP_PROGRAM);
    return Program(std::move(words), dir.path()).wait(std::chrono::seconds(60));
  }
  void SetUp() override {
    const Finished made = saesweep({"keys", "init", keys, "--host", "login", "--port", "9000"});
    ASSERT_EQ(made.exit_code, 0) << made.err;
    EXPECT_EQ(made.out, keys + "/worker.access\n" + keys + "/client.access\n");
  }
  std::string secret_of(const std::string& name) {
    const std::string text = read_file(fs::path(keys) / (name + ".key")).value();
    return text.substr(text.find("secret=") + 7, 40);
  }
};

TEST_F(KeysProgram, InitMakesADirectoryThatIsOursAlone) {
  EXPECT_EQ(fs::status(keys).permissions(), fs::perms(0700));
  EXPECT_EQ(fs::status(keys + "/server.key").permissions(), fs::perms(0600));
  const std::string bundle = read_file(keys + "/worker.access").value();
  EXPECT_THAT(bundle, AllOf(HasSubstr("host=login\n"), HasSubstr("worker_port=9000\n"),
                            Not(HasSubstr("client_port"))));
  EXPECT_THAT(read_file(keys + "/client.access").value(), HasSubstr("client_port=7078\n"));
}

TEST_F(KeysProgram, InitOverwritesNothing) {
  const Finished again = saesweep({"keys", "init", keys});
  EXPECT_EQ(again.exit_code, 2);
  EXPECT_THAT(again.err, HasSubstr("is not empty"));
}

TEST_F(KeysProgram, ListShowsNamesRolesAndTimesButNoSecret) {
  const Finished added = saesweep(
      {"keys", "add", "boss", "--role", "admin", "--expires", "2020-01-01", "--keys", keys});
  EXPECT_EQ(added.exit_code, 0) << added.err;
  EXPECT_EQ(added.out, keys + "/boss.access\n");
  const Finished list = saesweep({"keys", "list", "--keys", keys});
  EXPECT_EQ(list.exit_code, 0);
  EXPECT_THAT(list.out, AllOf(HasSubstr("boss"), HasSubstr("admin"), HasSubstr("expired"),
                              HasSubstr("2020-01-01T00:00:00Z"), HasSubstr("never")));
  const Finished json = saesweep({"keys", "list", "--keys", keys, "--json"});
  const Json read = Json::parse(json.out);
  EXPECT_EQ(read["schema"], 1);
  ASSERT_EQ(read["keys"].size(), 3u);
  EXPECT_EQ(read["keys"][0]["name"], "boss");
  EXPECT_EQ(read["keys"][0]["state"], "expired");
  EXPECT_EQ(read["keys"][1]["role"], "client");
  EXPECT_TRUE(read["keys"][1]["expires"].is_null());
  for (const char* name : {"server", "worker", "client", "boss"})
    EXPECT_THAT(added.out + added.err + list.out + list.err + json.out + json.err,
                Not(HasSubstr(secret_of(name))));
}

TEST_F(KeysProgram, RevokeRemovesAKey) {
  EXPECT_EQ(saesweep({"keys", "revoke", "worker", "--keys", keys}).exit_code, 0);
  EXPECT_THAT(saesweep({"keys", "list", "--keys", keys}).out, Not(HasSubstr("worker")));
  EXPECT_FALSE(fs::exists(keys + "/worker.key"));
  const Finished again = saesweep({"keys", "revoke", "worker", "--keys", keys});
  EXPECT_EQ(again.exit_code, 2);
  EXPECT_THAT(again.err, HasSubstr("no key worker"));
}

TEST_F(KeysProgram, MisuseSaysWhatWouldBeRight) {
  const Finished role = saesweep({"keys", "add", "x", "--role", "root", "--keys", keys});
  EXPECT_EQ(role.exit_code, 2);
  EXPECT_THAT(role.err, AllOf(HasSubstr("--role root"), HasSubstr("worker, client or admin")));
  const Finished time =
      saesweep({"keys", "add", "x", "--role", "worker", "--expires", "soon", "--keys", keys});
  EXPECT_EQ(time.exit_code, 2);
  EXPECT_THAT(time.err, AllOf(HasSubstr("--expires soon"), HasSubstr("2027-01-31")));
  EXPECT_EQ(saesweep({"keys"}).exit_code, 2);
  EXPECT_EQ(saesweep({"keys", "add", "../x", "--role", "worker", "--keys", keys}).exit_code, 2);
  EXPECT_EQ(saesweep({"keys", "list", "--keys", keys + "-not"}).exit_code, 2);
}

TEST_F(KeysProgram, ADirectoryThatOthersCanReadIsRefusedInClearText) {
  ASSERT_EQ(::chmod(keys.c_str(), 0755), 0);
  const Finished added = saesweep({"keys", "add", "x", "--role", "worker", "--keys", keys});
  EXPECT_EQ(added.exit_code, 2);
  EXPECT_THAT(added.err, HasSubstr("chmod 700 " + keys));
}

}  // namespace
}  // namespace saesweep::test
