#include "tests/e2e/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/support/json_schema_check.h"

namespace saesweep::test {
namespace {

constexpr auto kLong = std::chrono::seconds(300);

// A port that is free now; somebody else may take it, and then the test fails and says so.
std::uint16_t free_port() {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  EXPECT_EQ(::bind(socket, generic, size), 0);
  EXPECT_EQ(::getsockname(socket, generic, &size), 0);
  ::close(socket);
  return ntohs(address.sin_port);
}

}  // namespace

ServedScene::ServedScene() : listen_("tcp://127.0.0.1:" + std::to_string(free_port())) {}

std::unique_ptr<Program> ServedScene::serve(const std::string& place,
                                            const std::vector<std::string>& more) {
  std::vector<std::string> all = {"serve", "--state", state(place).string(), "--listen", listen_};
  all.insert(all.end(), more.begin(), more.end());
  auto program = std::make_unique<Program>(words(all), path());
  const auto endpoint = state(place) / "endpoint.json";
  std::string pid;
  EXPECT_TRUE(eventually([&] {
    if (!program->running()) return true;
    const auto json = parse_json(read(endpoint));
    if (!json || json->value("pid", 0) != program->pid()) return false;
    address = json->value("endpoint", "");
    return true;
  }));
  EXPECT_TRUE(program->running()) << program->err();
  return program;
}

std::unique_ptr<Program> ServedScene::worker(const std::string& name,
                                             const std::vector<std::string>& more) {
  std::vector<std::string> all = {"worker",
                                  "--connect",
                                  address,
                                  "--name",
                                  name,
                                  "--threads",
                                  "1",
                                  "--memory",
                                  "1GiB",
                                  "--state",
                                  (path() / (name + "-worker")).string()};
  all.insert(all.end(), more.begin(), more.end());
  return std::make_unique<Program>(words(all), path());
}

Finished ServedScene::ask(const std::string& place, std::vector<std::string> some) const {
  some.insert(some.end(), {"--state", state(place).string()});
  return saesweep(some);
}

Json ServedScene::asked(const std::string& place, std::vector<std::string> some,
                        const std::string& schema) const {
  some.emplace_back("--json");
  const Finished answered = ask(place, some);
  EXPECT_EQ(answered.exit_code, 0) << some[0] << ": " << answered.err;
  const Json json = parse_json(answered.out).value_or(Json(answered.out));
  EXPECT_THAT(JsonSchemaCheck::problems(json, JsonSchemaCheck::schema(schema)), testing::IsEmpty())
      << some[0] << ": " << json.dump();
  return json;
}

std::vector<std::string> ServedScene::submit_words(const std::string& place,
                                                   const std::vector<std::string>& more,
                                                   const std::string& sweep) const {
  std::vector<std::string> all = {"submit", (path() / sweep).string(), "--state",
                                  state(place).string()};
  all.insert(all.end(), more.begin(), more.end());
  return words(all);
}

Finished ServedScene::submit(const std::string& place, const std::vector<std::string>& more,
                             const std::string& sweep) const {
  return Program(submit_words(place, more, sweep), path()).wait(kLong);
}

Finished ServedScene::watch(const std::string& place) const {
  return Program(words({"watch", "--state", state(place).string(), "--out", out(place).string()}),
                 path())
      .wait(kLong);
}

std::map<std::string, std::string> ServedScene::calm() const {
  const Finished calm = run("sweep.yaml", "calm");
  EXPECT_EQ(calm.exit_code, 0) << calm.err;
  return results("calm");
}

void ServedScene::expect_the_same(const std::string& place,
                                  const std::map<std::string, std::string>& expected) const {
  const auto bytes = results(place);
  EXPECT_EQ(bytes.size(), expected.size());
  for (const auto& [name, text] : expected) {
    ASSERT_TRUE(bytes.contains(name)) << name;
    EXPECT_EQ(bytes.at(name), text) << name;
  }
}

}  // namespace saesweep::test
